"""A run on the terminal: a live bar where there is a terminal, plain lines with the time of day where there is none.

With a terminal, steps move one bar (loss, learning rate, tokens/s, time left) and everything else is printed above it. Without
one (a pipe, a log file, CI), steps are lines; as hundreds a second are of no use to a reader, a line waits until `INTERVAL` has
passed since the last, except for the first step and the last. `-v` prints every step in either case, `-q` the result alone.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from luthier.runs import lines
from luthier.runs.records import Callback, EvaluationRecord, SampleRecord, StartInfo, StepRecord

BAR = 20
"""Cells of the bar itself."""
QUIET, NORMAL, VERBOSE = -1, 0, 1
INTERVAL = 2.0
"""Seconds between two step lines where there is no terminal."""


class ConsoleCallback(Callback):
    """Shows a run to the person who started it.

    Args:
        verbosity: `QUIET` (the result only), `NORMAL`, or `VERBOSE` (each step as a line).
        console: where to print; standard output by default.
    """

    def __init__(self, verbosity: int = NORMAL, console: Console | None = None) -> None:
        self.verbosity = verbosity
        self.console = console or Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._live = self.console.is_terminal and verbosity > QUIET
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._info: StartInfo | None = None
        self._pace: lines.Pace | None = None
        self._losses: list[float] = []
        self._last: StepRecord | None = None
        self._best: EvaluationRecord | None = None
        self._printed = float("-inf")
        self._began = time.monotonic()

    def on_prepare(self, what: str, done: int, total: int) -> None:
        """A bar while data is prepared; without a terminal one line when it is done."""
        if self._live:
            progress = self._bar()
            if self._task is None or progress.tasks[-1].description != what:
                self._task = progress.add_task(what, total=total or None, detail="")
            progress.update(self._task, completed=done, total=total or None)
        elif done == total:
            self._say(f"{what}: {total}")

    def on_start(self, info: StartInfo) -> None:
        """Name the run and open the bar."""
        self._close()
        self._info, self._pace, self._began = info, lines.Pace(info), time.monotonic()
        self._losses, self._last, self._best = [], None, None  # of a stage before, which was another run
        self._say(lines.start(info))
        if self._live:
            progress = self._bar()
            self._task = progress.add_task(info.name, total=info.total_steps, completed=info.first_step - 1, detail="")

    def on_step(self, step: StepRecord) -> None:
        """Move the bar, or print a line when one is due."""
        self._last = step
        self._losses.append(step.loss)
        total, remaining = (self._pace.total, self._pace.remaining(step)) if self._pace else (None, None)
        if self._live and self._progress and self._task is not None:
            self._progress.update(self._task, completed=step.step, detail=self._detail(step, remaining))
        if self._due(step, total):
            self._printed = time.monotonic()
            self._say(lines.step(step, total, remaining))

    def _detail(self, step: StepRecord, remaining: float | None) -> str:
        """What stands beside the bar: as much as the terminal has room for, the most telling first."""
        parts = [
            f"loss {step.loss:.4f}",
            *([f"{lines.duration(remaining)} left"] if remaining else []),
            f"{lines.rate(step.tokens_per_second)} tokens/s",
            f"lr {step.learning_rate:.2e}",
            f"epoch {step.epoch:.2f}",
        ]
        name, total = (self._info.name, self._info.total_steps) if self._info else ("", 0)
        room = self.console.width - cell_len(name) - BAR - 2 * len(str(total)) - 4
        while parts and len("  ".join(parts)) > room:
            parts.pop()
        return "  ".join(parts)

    def _due(self, step: StepRecord, total: int | None) -> bool:
        if self.verbosity >= VERBOSE or step.skipped:
            return True
        if self._live:
            return False
        return step.step == total or time.monotonic() - self._printed >= INTERVAL

    def on_evaluate(self, record: EvaluationRecord) -> None:
        """One line."""
        if record.best:
            self._best = record
        self._say(lines.evaluation(record))

    def on_sample(self, record: SampleRecord) -> None:
        """Question and answer, set apart; of answers that are learnt from, only if verbose."""
        if record.rewards and self.verbosity < VERBOSE:
            return
        text = lines.sample(record)
        self._say(text, Text(text, style="cyan"))

    def on_save(self, step: int, folder: Path) -> None:
        """One line, if verbose; the end names the folder anyway."""
        if self.verbosity >= VERBOSE:
            self._say(f"saved {folder}")

    def on_note(self, text: str, shown: Any = None) -> None:
        """The note, in colours where there are any."""
        self._say(text, shown)

    def on_end(self, state: str) -> None:
        """Close the bar; the curve of the loss and one line of what happened."""
        self._close()
        if self.verbosity > QUIET and len(self._losses) > 1:
            self.console.print(f"loss {self._losses[0]:.4f} {lines.sparkline(self._losses)} {self._losses[-1]:.4f}")
        if self._info is None:
            return
        parts = [f"run {self._info.name} {state}"]
        if self._last:
            parts.append(f"after step {self._last.step}: loss {self._last.loss:.4f}")
        if self._best:
            by = "validation loss" if self._best.by == "loss" else self._best.by
            parts.append(f"best {by} {self._best.decisive:.4f} at step {self._best.step}")
        parts.append(f"{lines.duration(time.monotonic() - self._began)} in all")
        self.console.print(", ".join(parts))

    def _bar(self) -> Progress:
        if self._progress is None:
            details = TextColumn("{task.fields[detail]}")
            columns = ("{task.description}", BarColumn(bar_width=BAR), TextColumn("{task.completed}/{task.total}"), details)
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._progress.start()
        return self._progress

    def _close(self) -> None:
        if self._progress:
            self._progress.stop()
        self._progress = self._task = None

    def _say(self, text: str, shown: Any = None) -> None:
        if self.verbosity <= QUIET:
            return
        if self._live:
            self.console.print(text if shown is None else shown)
        else:
            self.console.print(f"{time.strftime('%H:%M:%S')}  {text}")
