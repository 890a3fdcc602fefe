"""From what was seen of each item to a value, its interval, and the interval of a difference.

A measure is a function of sums: accuracy is Σ right / Σ 1, perplexity exp(Σ nll / Σ tokens), corpus BLEU a formula of summed counts of
n-grams. So it is kept as one row of numbers for each item, and every resample is a product of counts with these rows.

Intervals are percentile bootstraps (Efron 1979): items are drawn with replacement `SAMPLES` times, and the middle 95 % of the values is
the interval. Two models that answered the same items are drawn *in pairs*: the same items for both, and the difference of each draw
(Koehn 2004). That is much narrower than what the two intervals suggest, for most items are hard or easy for both. The draws are
a function of the seed and the number of items alone.

What the interval says is how much the value would move with other items of the same kind. It says nothing of other prompts, seeds or runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SAMPLES = 1000
"""Resamples of an interval."""
_AT_ONCE = 2**22
"""Numbers drawn at once."""
Numbers = NDArray[np.float64]


def ratio(sums: Numbers) -> Numbers:
    """The first sum over the second, [..., 2] → [...]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


@dataclass(frozen=True)
class Measure:
    """One measure of one model on one task.

    Args:
        name: what it is called.
        rows: float64 [N, k], one row for each item; or [0, 0], where only the value is known.
        value: from sums of rows [..., k] to values [...].
        higher: a higher value is better.
        percent: it is a share, and told in per cent.
        groups: name → bool [N], items to tell apart, such as those of a subject.
        known: the value, where there are no rows.
    """

    name: str
    rows: Numbers
    value: Callable[[Numbers], Numbers] = ratio
    higher: bool = True
    percent: bool = True
    groups: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    known: float = float("nan")

    @property
    def total(self) -> float:
        """The value over all items."""
        return float(self.value(self.rows.sum(0))) if len(self.rows) else self.known


def mean(name: str, values: Any, **more: Any) -> Measure:
    """The mean of a number of each item."""
    numbers = np.asarray(values, np.float64)
    return Measure(name, np.stack([numbers, np.ones_like(numbers)], 1), **more)


class Estimate(NamedTuple):
    """A value and its interval, which is None where there are too few items."""

    value: float
    low: float | None = None
    high: float | None = None


class Compared(NamedTuple):
    """What is known of a measure.

    Args:
        items: how many there were.
        base, tuned: of either model; None where there is only one.
        difference: tuned − base, in pairs.
    """

    items: int
    base: Estimate | None
    tuned: Estimate | None
    difference: Estimate | None

    @property
    def sure(self) -> bool:
        """The interval of the difference lies on one side of zero."""
        found = self.difference
        return found is not None and found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)


def compared(base: Measure | None, tuned: Measure | None, seed: int, chosen: NDArray[np.bool_] | None = None) -> Compared:
    """The values of a measure for one model or two, with their intervals.

    Args:
        base: of the model before.
        tuned: of the model after.
        seed: of the draws.
        chosen: bool [N], only these items.
    """
    known = [measure for measure in (base, tuned) if measure is not None]
    rows = [measure.rows if chosen is None else measure.rows[chosen] for measure in known]
    values = [float(measure.value(own.sum(0))) if len(own) else measure.known for measure, own in zip(known, rows, strict=True)]
    paired = len(known) == 2 and rows[0].shape == rows[1].shape
    drawn = [measure.value(resampled(own, seed)) if len(own) > 1 else None for measure, own in zip(known, rows, strict=True)]
    estimates = [_estimate(value, draws) for value, draws in zip(values, drawn, strict=True)]
    difference = None
    if paired:
        both = drawn[1] - drawn[0] if drawn[0] is not None and drawn[1] is not None else None
        difference = _estimate(values[1] - values[0], both)
    first = estimates[0] if base is not None else None
    return Compared(len(rows[0]), first, estimates[-1] if tuned is not None else None, difference)


def resampled(rows: Numbers, seed: int) -> Numbers:
    """Sums of `SAMPLES` resamples of rows [N, k] → [SAMPLES, k]; the same items for every `rows` of this length."""
    count = len(rows)
    chance = np.random.default_rng([seed, count])
    sums = np.empty((SAMPLES, rows.shape[1]))
    step = max(1, _AT_ONCE // count)
    for begin in range(0, SAMPLES, step):
        some = min(step, SAMPLES - begin)
        drawn = chance.integers(count, size=(some, count)) + np.arange(some)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=some * count).reshape(some, count)
        sums[begin : begin + some] = times @ rows
    return sums


def _estimate(value: float, draws: Numbers | None) -> Estimate:
    if draws is None or not np.isfinite(draws).all():
        return Estimate(value)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
