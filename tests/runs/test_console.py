"""What a person sees of a run, with a terminal and without."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from luthier.runs import console as module
from luthier.runs.console import NORMAL, QUIET, VERBOSE, ConsoleCallback
from luthier.runs.records import EvaluationRecord, SampleRecord, StartInfo, StepRecord


def show(verbosity: int, *, terminal: bool, steps: int = 5) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160, highlight=False, markup=False)
    callback = ConsoleCallback(verbosity, console)
    callback.on_prepare("tokenising", 10, 10)
    callback.on_note("[first] row", Text("[first] row", style="green"))
    callback.on_start(StartInfo("first", Path("runs/first"), steps, 2.5))
    callback.on_sample(SampleRecord(0, "你是谁？", "[red]"))
    for step in range(1, steps + 1):
        callback.on_step(StepRecord(step, step / 2.5, 3.0 / step, 1e-4, 0.5, 100, 40, 0.1, 1000.0))
    callback.on_evaluate(EvaluationRecord(steps, 0.5, 1.65, 0.75, best=True))
    callback.on_end("done")
    return stream.getvalue()


@pytest.fixture(autouse=True)
def hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 3600.0)


def test_without_a_terminal_lines_carry_the_time_and_no_control_codes() -> None:
    text = show(NORMAL, terminal=False)
    assert "\x1b" not in text
    assert re.search(r"^\d\d:\d\d:\d\d  step 1/5  .*loss 3\.0000", text, re.MULTILINE)
    assert "step 5/5" in text  # the last step is always told, those between wait for their turn
    assert "step 3/5" not in text
    assert "[first] row" in text
    assert "[red]" in text  # an answer is text, not markup
    assert "perplexity 1.65" in text
    assert text.splitlines()[-1].startswith("run first done, after step 5: loss 0.6000, best validation loss 0.5000 at step 5")


def test_verbose_tells_every_step() -> None:
    text = show(VERBOSE, terminal=False)
    assert all(f"step {step}/5" in text for step in range(1, 6))


def test_quiet_tells_the_result_alone() -> None:
    (line,) = show(QUIET, terminal=False).splitlines()
    assert line.startswith("run first done")
    (line,) = show(QUIET, terminal=True).splitlines()
    assert line.startswith("run first done")


def test_with_a_terminal_steps_move_a_bar_that_is_gone_at_the_end() -> None:
    text = show(NORMAL, terminal=True)
    assert "5/5" in text
    assert "tokens/s" in text
    assert "\x1b[?25h" in text  # the cursor is back
    assert "█" in text.splitlines()[-2]  # the sparkline
    assert "run first done" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("width", "shown", "cut"), [(60, "loss 1.0000", "tokens/s"), (90, "100 tokens/s", "epoch"), (140, "epoch 0.60", "…")]
)
def test_the_bar_stays_on_one_line_whatever_the_width(width: int, shown: str, cut: str) -> None:
    stream = io.StringIO()
    callback = ConsoleCallback(NORMAL, Console(file=stream, force_terminal=True, width=width))
    callback.on_start(StartInfo("ein-langer-name-第一次", Path("x"), 5, 5.0))
    callback.on_step(StepRecord(3, 0.6, 1.0, 1e-4, 1.0, 10, 5, 0.1, 100.0))
    callback.on_end("done")
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    bars = [frame for frame in frames if "3/5" in frame]
    assert bars
    assert all(shown in bar and cut not in bar for bar in bars)


def test_a_run_that_fails_before_it_starts_says_nothing_of_its_own() -> None:
    stream = io.StringIO()
    ConsoleCallback(NORMAL, Console(file=stream)).on_end("failed")
    assert stream.getvalue() == ""
