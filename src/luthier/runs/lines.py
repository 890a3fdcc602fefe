"""A run told in plain lines: the same words in the log, in a terminal that is a pipe, and in `luthier logs`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise

from luthier.runs.records import EvaluationRecord, SampleRecord, StartInfo, StepRecord

BLOCKS = "▁▂▃▄▅▆▇█"
TELLING = ("margin", "reward", "kl")
"""Metrics of an objective that stand in a step's line, where it has them."""


class Pace:
    """How long the rest of a run takes, from the steps of this attempt alone.

    The wall clock counts, not the steps' own seconds: evaluations and checkpoints take time as well.
    """

    def __init__(self, info: StartInfo) -> None:
        self.total = info.total_steps
        self._before = info.first_step - 1
        self._began = time.monotonic()

    def remaining(self, step: StepRecord) -> float | None:
        """Seconds until the last step, or None before the first."""
        taken = step.step - self._before
        if taken <= 0:
            return None
        return round((time.monotonic() - self._began) / taken * max(0, self.total - step.step), 1)


def duration(seconds: float) -> str:
    """`45s`, `3m 20s` or `2h 05m`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def rate(tokens_per_second: float) -> str:
    """`812`, `48.3k` or `1.25M` tokens a second."""
    if tokens_per_second >= 1e6:
        return f"{tokens_per_second / 1e6:.2f}M"
    return f"{tokens_per_second / 1e3:.1f}k" if tokens_per_second >= 1e4 else f"{tokens_per_second:.0f}"


def start(info: StartInfo) -> str:
    """What begins."""
    epochs = info.total_steps / info.steps_per_epoch if info.steps_per_epoch else 0
    text = f"run {info.name}: {info.total_steps} steps, {epochs:.3g} epochs of {info.steps_per_epoch:.5g} steps"
    return f"{text}, resumed at step {info.first_step} (attempt {info.attempt})" if info.attempt > 1 else text


def step(record: StepRecord, total: int | None = None, remaining: float | None = None) -> str:
    """One step."""
    number = f"step {record.step}/{total}" if total else f"step {record.step}"
    parts = [
        number,
        f"epoch {record.epoch:.2f}",
        f"loss {record.loss:.4f}",
        f"lr {record.learning_rate:.2e}",
        f"grad {record.grad_norm:.3g}",
        f"{rate(record.tokens_per_second)} tokens/s",
    ]
    parts += [f"{name} {record.extra[name]:.3g}" for name in TELLING if name in record.extra]
    if remaining:
        parts.append(f"{duration(remaining)} left")
    if record.skipped:
        parts.append("skipped: loss or gradient not finite")
    return "  ".join(parts)


def evaluation(record: EvaluationRecord) -> str:
    """One evaluation."""
    parts = [f"loss {record.loss:.4f}"] if record.loss is not None else []
    if record.perplexity is not None:
        parts.append(f"perplexity {record.perplexity:.4g}")
    if record.accuracy is not None:
        parts.append(f"{'token accuracy' if record.perplexity is not None else 'accuracy'} {record.accuracy:.1%}")
    parts += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in record.metrics.items() if name != "accuracy"]
    text = f"evaluation at step {record.step}: {', '.join(parts)}"
    text = f"{text} (best so far)" if record.best else text
    return "; ".join([text, *(f"{name} {loss:.4f}" for name, loss in record.sources.items())])


def sample(record: SampleRecord) -> str:
    """One sample answer, question and answer on a line each."""
    earned = "".join(f", {name} {value:.3g}" for name, value in record.rewards.items())
    return f"sample at step {record.step}{earned}\n  > {record.prompt}\n  {record.answer}"


def sparkline(values: Sequence[float | None], width: int = 60) -> str:
    """A curve in one line of block characters, at most `width` of them; each is the mean of its stretch."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ""
    count = min(width, len(known))
    edges = [len(known) * i // count for i in range(count + 1)]
    means = [sum(known[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1))] if span else BLOCKS[0] for mean in means)
