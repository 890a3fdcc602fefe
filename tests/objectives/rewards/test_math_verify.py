"""Answers compared as mathematics, in a process that may be ended."""

from __future__ import annotations

import time

import pytest

from luthier.objectives.rewards import Bad, build
from tests.objectives.rewards.answers import answer, settings

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def reward():
    """One process for all tests: starting it takes longer than they do."""
    return build(settings({"type": "math_verify", "timeout": 2})[0])


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        (r"So the answer is $\boxed{\frac{1}{2}}$.", "0.5", 1),
        (r"所以答案是 $\boxed{\frac{2}{4}}$。", r"\frac{1}{2}", 1),
        (r"$x = \sqrt{8}$", r"2\sqrt{2}", 1),
        (r"\boxed{(1, 2]}", "$(1,2]$", 1),
        (r"\boxed{\{3, 1, 2\}}", r"$\{1, 2, 3\}$", 1),
        ("The result is 46.", "46", 1),
        ("答案：46", "46", 1),
        ("一共４６个，对吗？", "46", 1),
        (r"所以等于$\frac12$。", "0.5", 1),
        (r"（面积）$x^２$，对", "$x^2$", 1),
        ("The result is 47.", "46", 0),
        (r"$\boxed{\frac{1}{3}}$", r"\frac{1}{2}", 0),
        ("I do not know.", "46", 0),
        ("", "46", 0),
    ],
)
def test_cases(reward, text, reference, expected):
    assert reward([answer(text, reference)]) == [expected]


def test_what_is_no_mathematics_is_bad(reward):
    assert reward([answer("1", None)]) == [Bad("the prompt has no reference")]
    assert reward([answer("1", "")]) == [Bad("math-verify cannot parse the reference")]


def test_an_expression_that_never_ends_is_bad_and_the_next_is_not(reward):
    start = time.monotonic()
    never = r"$\boxed{9^{9^{9^{9}}} + \sin(9^{9^{9^{9}}})}$"
    first, second = reward([answer(never, "$9^{9^{9^{9}}}$"), answer("46", "46")])
    assert first == 0 or first == Bad("comparing took more than 2 s, or too much memory")
    assert second == 1
    assert time.monotonic() - start < 60


def test_an_ended_process_is_replaced(reward):
    reward([answer("46", "46")])
    reward._worker.process.kill()
    first, second = reward([answer("46", "46"), answer("46", "46")])
    assert isinstance(first, Bad)
    assert second == 1


def test_nothing_is_left_of_the_process():
    reward = build(settings("math_verify")[0])
    assert reward([answer("46", "46")]) == [1]
    process = reward._worker.process
    del reward
    assert process.poll() is not None
