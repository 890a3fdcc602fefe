"""Converted files hold what they held, what is lost is told, and choosing rows is repeatable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.convert import Losses, Plan, convert
from luthier.data.examples import Example, Origin
from luthier.data.formats import FORMATS
from luthier.data.join import Join
from luthier.data.problems import Problems
from luthier.data.read import read_rows
from luthier.data.read_examples import parse
from luthier.data.write import RowWriter
from luthier.errors import UserError
from tests.data.formats.test_round_trip import HERE, WRITTEN, examples


def converted(rows: list[Any], source: str, target: str, out: Path, **more: Any) -> Losses:
    """Convert rows to a file; problems are raised."""
    problems = Problems()
    numbered = [(Origin("rows.jsonl", number, number - 1), row) for number, row in enumerate(rows, 1)]
    with RowWriter(out, replace=True) as writer:
        losses = convert(numbered, Plan(FORMATS[source], FORMATS[target], **more), writer, problems)
        problems.finish()
    return losses


def read_back(path: Path, name: str) -> list[Example]:
    return [replace(example, origin=HERE) for origin, row in read_rows(path) for example in parse(FORMATS[name], row, origin, {})]


@settings(max_examples=40, deadline=None)
@given(st.lists(examples(), min_size=1, max_size=4), st.sampled_from(WRITTEN), st.sampled_from(["jsonl", "json.gz", "csv"]))
def test_there_and_back(tmp_path_factory: pytest.TempPathFactory, made: list[Example], target: str, suffix: str) -> None:
    """Whatever the formats: a file from which nothing was told to be lost gives every example back."""
    folder = tmp_path_factory.getbasetemp()
    holder = "prompt" if any(type(each).__name__ == "Prompt" for each in made) else "messages"
    made = [each for each in made if (type(each).__name__ == "Prompt") == (holder == "prompt")]
    rows = [FORMATS[holder].write(each) for each in made]
    try:
        losses = converted(rows, holder, target, folder / f"there.{suffix}")
    except UserError:
        return  # it can hold none of the rows
    if losses.counts:
        return
    assert read_back(folder / f"there.{suffix}", target) == made
    there = [row for _, row in read_rows(folder / f"there.{suffix}")]
    again = converted(there, target, holder, folder / "back.jsonl")
    assert read_back(folder / "back.jsonl", holder) == made
    assert not again.counts or suffix == "csv"


def qa(number: int, **more: Any) -> dict[str, Any]:
    return {"instruction": f"How much is {number} and {number}?", "output": f"{2 * number}.", **more}


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_what_is_lost_is_counted_and_the_first_place_is_named(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0.5}], "source": "x"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0.5}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
    ]
    losses = converted(rows, "messages", "alpaca", tmp_path / "out.jsonl")
    assert losses.lines() == [
        "  lost: loss weights, in 2 rows, first at rows.jsonl:2",
        "  lost: the column `source` (see --keep), in 1 row, first at rows.jsonl:2",
        "  lost: the whole row (format `alpaca` has no place for tool calls), in 1 row, first at rows.jsonl:4",
    ]
    assert len(lines(tmp_path / "out.jsonl")) == 3


def test_strict_refuses_and_leaves_no_file(tmp_path: Path) -> None:
    rows = [qa(1), qa(2, source="x")]
    with pytest.raises(UserError, match=r"rows\.jsonl:2: would lose the column `source`"):
        converted(rows, "alpaca", "messages", tmp_path / "out.jsonl", strict=True)
    assert list(tmp_path.iterdir()) == []
    converted(rows, "alpaca", "messages", tmp_path / "out.jsonl", strict=True, keep=("source",))
    assert [row.get("source") for row in lines(tmp_path / "out.jsonl")] == [None, "x"]


def test_bad_rows_are_told_all_together_and_nothing_is_written(tmp_path: Path) -> None:
    rows = [qa(1), {"instruction": "a"}, qa(2), {"output": 1}]
    with pytest.raises(UserError, match="2 bad rows"):
        converted(rows, "alpaca", "messages", tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limit", "sample", "count"), [(3, None, 3), (None, 3, 3), (None, 50, 20), (50, None, 20)])
def test_limits_and_samples(tmp_path: Path, limit: int | None, sample: int | None, count: int) -> None:
    rows = [qa(number) for number in range(20)]
    taken = []
    for name in ("a.jsonl", "b.jsonl"):
        converted(rows, "alpaca", "alpaca", tmp_path / name, limit=limit, sample=sample, seed=7)
        taken.append([row["output"] for row in lines(tmp_path / name)])
    assert taken[0] == taken[1] == sorted(taken[0], key=lambda answer: float(answer))
    assert len(taken[0]) == count
    if limit:
        assert taken[0] == [row["output"] for row in rows[:count]]


def test_samples_are_even_and_depend_on_the_seed(tmp_path: Path) -> None:
    rows = [qa(number) for number in range(10)]
    drawn: dict[str, int] = {}
    for seed in range(60):
        converted(rows, "alpaca", "alpaca", tmp_path / "a.jsonl", sample=3, seed=seed)
        for row in lines(tmp_path / "a.jsonl"):
            drawn[row["output"]] = drawn.get(row["output"], 0) + 1
    assert len(drawn) == 10
    assert all(6 <= count <= 32 for count in drawn.values())  # 18 expected, give or take 3.5


def test_where_nothing_is_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row is taken"):
        converted([qa(1)], "alpaca", "messages", tmp_path / "a.jsonl", where=lambda row, origin: False)
    with pytest.raises(UserError, match="can hold none of the rows: the whole row"):
        converted([qa(1)], "alpaca", "kto", tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="is only read"):
        converted([qa(1)], "alpaca", "moss", tmp_path / "a.jsonl")


def table(name: str, rows: list[Any]) -> tuple[str, list[tuple[Origin, Any]]]:
    return name, [(Origin(name, number + 2, number), row) for number, row in enumerate(rows)]


def test_a_join_takes_every_pair_and_counts_who_has_none() -> None:
    join = Join("id")
    questions = table("q.csv", [{"id": "1", "content": "q1"}, {"id": "2", "content": "q2"}, {"id": "3", "content": "q3"}])
    answers = table(
        "data/a.csv.gz",
        [
            {"ans": "7", "id": 2, "content": "a2"},
            {"ans": "8", "id": 1, "content": "a1"},
            {"ans": "9", "id": 1, "content": "b1"},
            {"ans": "5", "id": 4, "content": "a4"},
        ],
    )
    found = list(join([questions, answers]))
    assert [(origin.line, row) for origin, row in found] == [
        (2, {"id": "1", "q.content": "q1", "ans": "8", "a.content": "a1"}),
        (2, {"id": "1", "q.content": "q1", "ans": "9", "a.content": "b1"}),
        (3, {"id": "2", "q.content": "q2", "ans": "7", "a.content": "a2"}),
    ]
    assert dict(join.alone) == {"q.csv": 1, "data/a.csv.gz": 1}


def test_a_join_without_the_column() -> None:
    with pytest.raises(UserError, match=r"a\.csv: there is no column `id` to join on\. Did you mean `ids`\?"):
        list(Join("id")([table("q.csv", [{"id": "1"}]), table("a.csv", [{"ids": "1"}])]))
