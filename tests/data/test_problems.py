"""Bad rows are gathered, told all at once, and then the policy decides."""

from __future__ import annotations

import pytest

from luthier.data.examples import Origin
from luthier.data.problems import LISTED, Problems
from luthier.errors import UserError


def at(line: int, file: str = "a.json") -> Origin:
    return Origin(file, line, line - 1)


def told(problems: Problems) -> str:
    with pytest.raises(UserError) as caught:
        problems.finish()
    return str(caught.value)


def test_no_problem_no_error() -> None:
    Problems().finish()


def test_one_problem_is_one_line() -> None:
    problems = Problems()
    problems.add(at(7), "missing `output`")
    assert told(problems) == "a.json:7: missing `output`"


def test_some_problems_are_all_listed() -> None:
    problems = Problems()
    for line in range(1, LISTED + 1):
        problems.add(at(line), f"turn {line}: two user turns in a row")
    lines = told(problems).splitlines()
    assert lines[0].startswith("20 bad rows")
    assert "data.on_error: skip" in lines[0]
    assert lines[1:] == [f"a.json:{line}: turn {line}: two user turns in a row" for line in range(1, LISTED + 1)]


def test_many_problems_are_summarised_by_file_and_kind() -> None:
    problems = Problems()
    for line in [*range(1, 1001), 1005, 1007]:
        problems.add(at(line), f"turn {line % 7}: two user turns in a row")
    problems.add(at(1006), "missing `output`")
    problems.add(at(3, "b.json"), "missing `output`")
    lines = told(problems).splitlines()
    assert lines[0].startswith("1,004 bad rows")
    assert lines[1:] == [
        "a.json:1: turn 1: two user turns in a row (1,002 rows: lines 1–1000, 1005, 1007)",
        "a.json:1006: missing `output`",
        "b.json:3: missing `output`",
    ]


def test_skip_counts_but_never_loses_the_rest_of_a_file() -> None:
    problems = Problems("skip")
    problems.add(at(3), "missing `output`")
    problems.finish()
    assert problems.count == 1
    problems.add(at(9), "broken JSON: Expecting value", fatal=True)
    assert told(problems) == "a.json:9: broken JSON: Expecting value"


def test_of_many_kinds_the_most_frequent_are_told() -> None:
    problems = Problems("skip")
    for line, message in enumerate(["one", "two", "two", "three"], 1):
        problems.add(at(line), message)
    assert problems.by_kind(1) == ["a.json:2: two (2 rows: lines 2–3)", "… and 2 other kinds"]
