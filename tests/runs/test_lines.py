"""The words of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.runs import lines
from luthier.runs.records import EvaluationRecord, SampleRecord, StartInfo, StepRecord

STEP = StepRecord(12, 1.5, 2.25, 1e-4, 0.75, 900, 300, 0.5, 1800.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m 00s"), (200, "3m 20s"), (7500, "2h 05m"), (3599.7, "1h 00m")]
)
def test_durations_are_rounded_before_they_are_split(seconds: float, text: str) -> None:
    assert lines.duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(812.4, "812"), (48_300, "48.3k"), (1_250_000, "1.25M")])
def test_rates(value: float, text: str) -> None:
    assert lines.rate(value) == text


def test_a_step_is_one_line() -> None:
    text = lines.step(STEP, 36, 90)
    assert text == "step 12/36  epoch 1.50  loss 2.2500  lr 1.00e-04  grad 0.75  1800 tokens/s  1m 30s left"


def test_evaluations_samples_and_starts() -> None:
    assert "best so far" in lines.evaluation(EvaluationRecord(12, 1.0, 2.718, 0.5, best=True))
    assert lines.sample(SampleRecord(0, "q", "a")).splitlines() == ["sample at step 0", "  > q", "  a"]
    assert lines.start(StartInfo("first", Path(), 36, 12)) == "run first: 36 steps, 3 epochs of 12 steps"
    assert "resumed at step 13 (attempt 2)" in lines.start(StartInfo("first", Path(), 36, 12, first_step=13, attempt=2))


def test_the_pace_counts_only_the_steps_of_this_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(lines.time, "monotonic", lambda: now)
    pace = lines.Pace(StartInfo("first", Path(), 36, 12, first_step=11))
    now = 104.0
    assert pace.remaining(STEP) == 48.0  # two steps in four seconds, 24 to go


def test_a_sparkline_keeps_the_shape() -> None:
    assert lines.sparkline([3, 2, 1]) == "█▅▁"
    assert lines.sparkline([1.0, None, float("nan"), 1.0]) == "▁▁"
    assert lines.sparkline([]) == ""
    long = lines.sparkline(list(range(1000, 0, -1)), width=40)
    assert len(long) == 40
    assert sorted(long, reverse=True) == list(long)
