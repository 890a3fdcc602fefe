"""Several rewards as one: the weighted sum, what becomes of bad values, and that all of it is told."""

from __future__ import annotations

import math
import threading

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from luthier.errors import UserError
from luthier.objectives.rewards import Bad, Judge, Part, TrainedReward, digest_of, judge_of
from tests.objectives.rewards.answers import answer, settings

ANSWERS = [answer("1", "1", origin="a.jsonl:1"), answer("2", "1", origin="a.jsonl:2"), answer("", None, origin="b.jsonl:9")]


def fixed(*values):
    return lambda answers: list(values)


def test_a_weighted_sum_and_its_components():
    verdict = Judge([Part("a", fixed(1, 2, 3)), Part("b", fixed(True, 0.5, numpy.float32(2)), weight=-0.5)])(ANSWERS)
    assert verdict.total == [0.5, 1.75, 2]
    assert verdict.components == {"a": [1, 2, 3], "b": [1, 0.5, 2]}
    assert verdict.usable == [True] * 3
    assert not verdict.bad
    assert verdict.means() == {"a": 2, "b": pytest.approx(3.5 / 3)}
    assert verdict.lines() == []


BAD = [
    (None, "gives None"),
    (math.nan, "gives nan"),
    (-math.inf, "gives -inf"),
    ("1", "gives a text, not a number"),
    ([1], "gives a list, not a number"),
    (torch.ones(2), "gives a Tensor, not a number"),
    (10**400, "gives a int, not a number"),
    (Bad("it took longer than 5 s"), "it took longer than 5 s"),
]


@pytest.mark.parametrize(("value", "why"), BAD)
@pytest.mark.parametrize(
    ("on_bad", "total", "usable"), [("zero", [1, 10, 1], [True] * 3), ("skip", [1, 0, 1], [True, False, True])]
)
def test_a_bad_value(value, why, on_bad, total, usable):
    verdict = Judge([Part("odd", fixed(1, value, 1), on_bad=on_bad), Part("even", fixed(0, 10, 0))])(ANSWERS)
    assert (verdict.total, verdict.usable) == (total, usable)
    assert math.isnan(verdict.components["odd"][1])
    assert verdict.lines() == [f"reward `odd`: 1 of 3 bad, first at a.jsonl:2: {why}"]
    assert verdict.means() == {"odd": 1, "even": pytest.approx(10 / 3)}


@pytest.mark.parametrize(("value", "why"), BAD)
def test_a_bad_value_may_stop_the_run(value, why):
    with pytest.raises(UserError) as error:
        Judge([Part("odd", fixed(1, value, 1), on_bad="stop")])(ANSWERS)
    assert str(error.value).startswith(f"a.jsonl:2: reward `odd`: {why}. ")


def raising(answers):
    raise ZeroDivisionError("division by zero\nand more")


@pytest.mark.parametrize(
    ("reward", "why"),
    [
        (raising, "ZeroDivisionError: division by zero"),
        (fixed(1, 2), "gives 2 values for 3 answers"),
        (fixed(), "gives 0 values for 3 answers"),
    ],
)
@pytest.mark.parametrize("waits", [False, True])
def test_a_reward_that_fails_is_bad_for_all_answers(reward, why, waits):
    verdict = Judge([Part("broken", reward, waits=waits), Part("fine", fixed(1, 1, 1))])(ANSWERS)
    assert verdict.usable == [False] * 3
    assert verdict.lines() == [f"reward `broken`: 3 of 3 bad, first at a.jsonl:1: {why}"]
    assert verdict.means() == {"fine": 1}


def test_rewards_that_wait_wait_together_and_beside_the_others():
    meeting = threading.Barrier(3, timeout=10)

    def meets(answers):
        meeting.wait()
        return [1.0] * len(answers)

    verdict = Judge([Part("a", meets, waits=True), Part("b", meets), Part("c", meets, waits=True)])(ANSWERS)
    assert verdict.total == [3, 3, 3]
    assert list(verdict.components) == ["a", "b", "c"]


def test_no_answers_no_values():
    verdict = Judge([Part("broken", raising)])([])
    assert (verdict.total, verdict.components, verdict.bad) == ([], {"broken": []}, ())


@given(
    st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=1, max_size=4),
    st.lists(st.floats(-3, 3), min_size=4, max_size=4),
)
def test_the_sum_is_that_of_its_parts(values, weights):
    judge = Judge([Part(str(i), fixed(*row), weight) for i, (row, weight) in enumerate(zip(values, weights, strict=False))])
    total = judge(ANSWERS).total
    for i in range(3):
        assert total[i] == pytest.approx(sum(weight * row[i] for row, weight in zip(values, weights, strict=False)), abs=1e-9)


def test_own_code(tmp_path):
    file = tmp_path / "rewards.py"
    file.write_text(
        "def short(answers):\n    return [1 / len(a.text) for a in answers]\n\ndef one(answers):\n    return 1\n", "utf-8"
    )
    chosen = settings(
        {"python": f"{file}:short", "name": "short", "weight": 2}, {"python": f"{file}:one", "name": "one", "on_bad": "zero"}
    )
    verdict = judge_of(chosen)(ANSWERS[:2])
    assert verdict.total == [2, 2]
    assert verdict.lines() == ["reward `one`: 2 of 2 bad, first at a.jsonl:1: gives a int, not a list"]
    (line, _) = judge_of(chosen)(ANSWERS).lines()
    assert line.startswith("reward `short`: 3 of 3 bad, first at a.jsonl:1: ")
    assert line.endswith("rewards.py:2: ZeroDivisionError: division by zero")
    before = digest_of(chosen)
    file.write_text(file.read_text("utf-8") + "# changed\n", "utf-8")
    assert digest_of(chosen) != before
    with pytest.raises(UserError, match="there is no function `long`"):
        judge_of(settings({"python": f"{file}:long"}))


def test_a_trained_model_scores_the_whole_conversation():
    class Counts:
        def score(self, conversations):
            return [len(messages) + len(messages[-1]["content"]) for messages in conversations]

    assert TrainedReward(Counts())(ANSWERS) == [3, 3, 2]


def test_names_of_several_rewards():
    assert [part.name for part in judge_of(settings("exact_match", {"type": "length", "max": 9, "name": "brief"})).parts] == [
        "exact_match",
        "brief",
    ]
    with pytest.raises(ValidationError, match="two rewards are called `exact_match`"):
        settings("exact_match", {"type": "exact_match", "extract": "number"})
    with pytest.raises(ValidationError):
        settings()


@pytest.mark.parametrize(
    "written",
    [
        {"type": "exact_match", "pattern": "("},
        {"type": "format_regex", "pattern": "*"},
        {"type": "length"},
        {"type": "length", "min": 5, "max": 4},
        {"type": "length", "shape": "overlong", "max": 4, "margin": 5},
        {"type": "json_schema", "file": "a.json", "inline": {"type": "object"}},
        {"type": "exact_match", "on_bad": "ignore"},
        {"type": "exact_match", "weight": float("nan")},
        {"type": "exactly"},
    ],
)
def test_settings_that_cannot_be(written):
    with pytest.raises(ValidationError):
        settings(written)


def test_one_reward_needs_no_list():
    from tests.objectives.rewards.answers import READ

    assert READ.validate_python("exact_match") == READ.validate_python({"type": "exact_match"}) == settings("exact_match")
