"""Rows that are written are read back as they were, and a file is whole or absent."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

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

    for name in ("new.json", "old.json", "t.csv"):
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
    [("a.xlsx", "how to write"), ("a", "how to write"), ("b/a.json", "no folder"), ("old.json", "there already")],
)
def test_places_that_are_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "old.json").write_text("[]")
    with pytest.raises(UserError, match=said):
        RowWriter(tmp_path / name)
