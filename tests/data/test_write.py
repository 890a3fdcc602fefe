"""Rows that are written are read back as they were, and a file is whole or absent."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.problems import RowError
from luthier.data.read import read_rows
from luthier.data.write import RowWriter
from luthier.errors import UserError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
PIECES = ["a", "文", "\n", " ", "\r", "<|endoftext|>", "\u2028"]
names = st.sampled_from(["id", "问", "a b", 'quo"te', "x"])


def written(path: Path, rows: list[Any]) -> list[Any]:
    with RowWriter(path, replace=True) as writer:
        for row in rows:
            writer.write(row)
    return [row for _, row in read_rows(path)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(names, json_values, min_size=1), min_size=1, max_size=5),
    st.sampled_from(["jsonl", "json", "jsonl.gz"]),
)
def test_json_holds_everything(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], suffix: str) -> None:
    assert written(tmp_path_factory.getbasetemp() / f"rows.{suffix}", rows) == rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(names, text, min_size=1), min_size=1, max_size=5), st.sampled_from(["csv", "tsv"]))
def test_tables_hold_texts(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], suffix: str) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path = tmp_path_factory.getbasetemp() / f"rows.{suffix}"
    with RowWriter(path, replace=True) as writer:
        for row in rows:
            writer.write(row)
    assert all(set(row) == set(columns) for row in map(writer.as_read, rows))
    assert [row for _, row in read_rows(path)] == [writer.as_read(row) for row in rows]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), min_size=1, max_size=4))
def test_documents_of_a_text_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.txt"
    rows = [{"text": each} for each in texts]
    expected = []
    with RowWriter(path, replace=True) as writer:
        for row in rows:
            try:
                expected += [read] if (read := writer.as_read(row))["text"] else []
            except RowError:
                continue
            writer.write(row)
    assert expected == [] or [row for _, row in read_rows(path)] == expected


def test_cells_that_are_no_text_are_json(tmp_path: Path) -> None:
    rows = [{"a": ["文", 1], "b": None}, {"b": {"c": True}, "d": 2}]
    assert written(tmp_path / "t.csv", rows) == [
        {"a": '["文", 1]', "b": "", "d": ""},
        {"a": "", "b": '{"c": true}', "d": "2"},
    ]


parquet_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.integers(-9, 9) | st.floats(-1e9, 1e9) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(names, parquet_values, min_size=1), min_size=1, max_size=5))
def test_parquet_holds_what_agrees_and_the_rest_as_json(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.parquet"
    with RowWriter(path, replace=True) as writer:
        for row in rows:
            writer.write(row)
    assert [row for _, row in read_rows(path)] == [writer.as_read(row) for row in rows]


def test_parquet_keeps_messages_as_they_are_and_writes_schemas_as_json(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "stock", "arguments": "{}"}}
    talk = [{"role": "user", "content": "E?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    tools = [{"type": "function", "function": {"name": "stock", "parameters": {"properties": {"string": {"type": "string"}}}}}]
    rows = [{"messages": talk, "tools": tools, "score": 1}, {"messages": talk[:1], "score": 0.5, "tags": ["a"]}]
    found = written(tmp_path / "t.parquet", rows)
    assert [row["messages"] for row in found] == [talk, talk[:1]]
    assert [row["score"] for row in found] == [1.0, 0.5]
    assert [row["tags"] for row in found] == [None, ["a"]]
    assert (json.loads(found[0]["tools"]), found[1]["tools"]) == (tools, None)
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert str(table.schema.field("score").type) == "double"
    assert table.schema.field("messages").type.value_type.field("role").type == pyarrow.string()


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        written(tmp_path / name, [{"a": 1}])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == b'{"a": 1}\n'


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("[1]")

    def fail(name: str) -> None:
        with RowWriter(tmp_path / name, replace=True) as writer:
            writer.write({"a": 1})
            raise RuntimeError("on the way")

    for name in ("new.json", "old.json", "t.csv", "t.parquet"):
        with pytest.raises(RuntimeError):
            fail(name)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "[1]"


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("a.json", {"a": "\ud83d"}, "half of a surrogate pair"),
        ("a.json", {"a": {1, 2}}, "cannot be written as JSON"),
        ("a.csv", [1], "holds rows with columns"),
        ("a.parquet", [1], "holds rows with columns"),
        ("a.txt", {"text": "x", "id": 1}, "holds nothing but text"),
        ("a.txt", ["x"], "holds nothing but text"),
    ],
)
def test_rows_that_a_file_cannot_hold(tmp_path: Path, name: str, row: Any, said: str) -> None:
    with RowWriter(tmp_path / name) as writer:
        with pytest.raises(RowError, match=said):
            writer.write(row)
        assert writer.rows == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.xlsx", "how to write"),
        ("a", "how to write"),
        ("a.parquet.gz", "how to write"),
        ("b/a.json", "no folder"),
        ("old.json", "there already"),
    ],
)
def test_places_that_are_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "old.json").write_text("[]")
    with pytest.raises(UserError, match=said):
        RowWriter(tmp_path / name)
