"""From pairs of runs to the tables of `README.md`.

A *pair* is one run of Luthier and one of a peer soon after it, so that both meet the same machine. Of each pair comes one ratio of
real tokens per CPU-second; a cell of the table is the median of its ratios with the least and the largest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from measure import Measured

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
SPEED = (
    "what",
    "peer, setting",
    "Luthier",
    "peer",
    "ratio (min–max)",
    "computed / real tokens",
    "losses apart: step 1, any step",
    "peak memory, MiB: Luthier, peer",
    "pairs",
)
START = ("", "start of step 1", "end of step 1", "wall, end of step 1", "rows per CPU-s", "`--help`")


@dataclass(frozen=True)
class Spread:
    """Median, least and largest of some numbers."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one number."""
        given = list(values)
        return cls(median(given), min(given), max(given))

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.least:.2f}–{self.most:.2f})"


@dataclass(frozen=True)
class Comparison:
    """A peer in one setting against Luthier, in one method and precision.

    Attributes:
        method, precision, peer, setting: which; `peer` as people write it.
        pairs: runs of Luthier and of the peer.
        reason: why there are no pairs.
    """

    method: str
    precision: str
    peer: str
    setting: str
    pairs: tuple[tuple[Measured, Measured], ...] = ()
    reason: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Which cell it is."""
        return self.method, self.precision, self.peer, self.setting

    @property
    def ratio(self) -> Spread:
        """How many times as fast Luthier is."""
        return Spread.of(ours.speed / theirs.speed for ours, theirs in self.pairs)

    @property
    def loss_differences(self) -> list[float] | None:
        """How far the losses of each step are apart, or None where the steps do not hold the same tokens."""
        ours, theirs = self.pairs[0]
        if ours.tokens != theirs.tokens or len(ours.losses) != len(theirs.losses):
            return None
        return [abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)]

    def cells(self) -> list[str]:
        """Its row of the table."""
        names = [f"{self.method} {self.precision}", f"{self.peer}, {self.setting}"]
        if not self.pairs:
            return [*names, "", "", f"not measured: {self.reason}", "", "", "", "0"]
        ours, theirs = zip(*self.pairs, strict=True)
        apart = self.loss_differences
        return [
            *names,
            f"{median(run.speed for run in ours):.0f}",
            f"{median(run.speed for run in theirs):.0f}",
            str(self.ratio),
            f"{theirs[0].padding:.2f}",
            f"{apart[0]:.0e}, {max(apart):.0e}" if apart else "other rows in a step",
            f"{median(run.peak for run in ours):,.0f}, {median(run.peak for run in theirs):,.0f}",
            str(len(self.pairs)),
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "pairs": [[vars(run) for run in pair] for pair in self.pairs]}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Comparison:
        """From plain data."""
        pairs = tuple((Measured.of(ours), Measured.of(theirs)) for ours, theirs in values["pairs"])
        return cls(**{**values, "pairs": pairs})


@dataclass(frozen=True)
class Start:
    """How one side begins; CPU seconds unless said otherwise.

    Attributes:
        side: as people write it.
        begin, first: seconds from the command to the start and to the end of step 1, with 1,000 rows.
        wall: wall seconds to the end of step 1.
        rows: rows prepared per CPU-second; None where rows are prepared while training.
        help: seconds of `--help`.
        reason: why there are no numbers.
    """

    side: str
    begin: float = 0.0
    first: float = 0.0
    wall: float = 0.0
    rows: float | None = None
    help: float = 0.0
    reason: str = ""

    def cells(self) -> list[str]:
        """Its row of the table."""
        if self.reason:
            return [self.side, f"not measured: {self.reason}", "", "", "", ""]
        rows = "while training" if self.rows is None else f"{self.rows:,.0f}"
        return [self.side, f"{self.begin:.1f}", f"{self.first:.1f}", f"{self.wall:.0f}", rows, f"{self.help:.2f}"]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))


def tables(comparisons: Iterable[Comparison], starts: Iterable[Start]) -> str:
    """Both tables: speed, and the way to the first step. Empty ones are left out."""
    speed = [comparison.cells() for comparison in comparisons]
    start = [one.cells() for one in starts]
    parts = [table(SPEED, speed)] if speed else []
    return "\n\n".join([*parts, table(START, start)] if start else parts)


def put_between(page: str, text: str) -> str:
    """The page with `text` between its markers.

    Raises:
        ValueError: it has none.
    """
    found = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not found.search(page):
        raise ValueError(f"no {BEGIN} … {END} on the page")
    return found.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page)
