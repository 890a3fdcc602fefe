"""Bad rows: each is told as `file:line: what is wrong`, all of them at once, and then the policy decides.

Stopping at the first bad row makes people mend a file one run at a time; leaving bad rows out without a word makes them train on
something else than they think. So every row is read, the problems are gathered, and `data.on_error` says whether they end the
command (`fail`) or are left out and counted (`skip`). Problems after which the rest of a file cannot be read always end it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from luthier.data.examples import Origin
from luthier.errors import UserError

LISTED = 20
"""Up to so many problems are listed one by one; more are listed by kind."""
LEFT_OUT = "set `data.on_error: skip` to leave them out"
"""How a recipe leaves bad rows out."""
_RANGES = 12


class RowError(Exception):
    """A row that is not what its format promises; the message says what and where in the row."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """What a reader yields in place of a row that it could not read.

    Args:
        message: what is wrong.
        fatal: nothing after this row can be read, so leaving it out would lose the rest of the file.
    """

    message: str
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """One bad row."""

    origin: Origin
    message: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.message}"


class Problems:
    """Gathers the bad rows of all sources.

    Args:
        on_error: `fail` lets `finish` raise when there was any problem, `skip` only when one was fatal.
        remedy: how bad rows are left out.

    Attributes:
        count: bad rows so far.
    """

    def __init__(self, on_error: Literal["fail", "skip"] = "fail", *, remedy: str = LEFT_OUT) -> None:
        self.on_error, self._remedy = on_error, remedy
        self.count = 0
        self.first: list[Problem] = []
        self._fatal: list[Problem] = []
        self._kinds: dict[tuple[str, str], list[int]] = {}
        self._examples: dict[tuple[str, str], str] = {}

    def add(self, origin: Origin, message: str, *, fatal: bool = False) -> None:
        """Take note of one bad row."""
        self.count += 1
        problem = Problem(origin, message)
        if len(self.first) < LISTED:
            self.first.append(problem)
        if fatal:
            self._fatal.append(problem)
        kind = (origin.file, _kind(message))
        self._examples.setdefault(kind, message)
        self._kinds.setdefault(kind, []).append(origin.line)

    def finish(self) -> None:
        """Apply the policy.

        Raises:
            UserError: with every problem, if the policy is `fail` or a problem was fatal.
        """
        if not self.count or (self.on_error == "skip" and not self._fatal):
            return
        shown = self.first if self.on_error == "fail" else self._fatal
        if self.count == 1 or (self.on_error == "skip" and len(shown) == 1):
            hint = f"Mend it, or {self._remedy}." if self._remedy != LEFT_OUT and not self._fatal else None
            raise UserError(shown[0].message, where=str(shown[0].origin), hint=hint)
        lines = [str(problem) for problem in shown] if self.count <= LISTED or shown is self._fatal else self.by_kind()
        advice = f" (mend them, or {self._remedy})" if not self._fatal else ""
        raise UserError("\n".join([f"{self.count:,} bad rows{advice}:", *lines]))

    def by_kind(self, most: int | None = None) -> list[str]:
        """One line for each file and kind of problem, most frequent first, with the lines where it occurs; at most `most` kinds."""
        counts = Counter({kind: len(lines) for kind, lines in self._kinds.items()})
        told = [self._summary(kind, count) for kind, count in counts.most_common(most)]
        return [*told, f"… and {len(counts) - len(told):,} other kinds"] if len(told) < len(counts) else told

    def _summary(self, kind: tuple[str, str], count: int) -> str:
        lines = self._kinds[kind]
        text = f"{kind[0]}:{lines[0]}: {self._examples[kind]}"
        return text if count == 1 else f"{text} ({count:,} rows: lines {_ranges(lines)})"


def _kind(message: str) -> str:
    """A message without the numbers, which differ from row to row."""
    return re.sub(r"\d+", "#", message)


def _ranges(numbers: list[int]) -> str:
    """`3, 7–9, 12, …`: sorted numbers with runs drawn together, cut after some."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [str(a) if a == b else f"{a}–{b}" for a, b in runs[:_RANGES]]
    return ", ".join([*shown, "…"] if len(runs) > _RANGES else shown)


def printable(text: str, most: int = 60) -> str:
    """Text for one line of a terminal: cut after `most` characters, and no character in it that does more than stand there."""
    line = text[:most].replace("\n", "⏎")
    shown = "".join(letter if letter.isprintable() else f"<U+{ord(letter):04X}>" for letter in line)
    return shown if len(text) <= most else f"{shown}…"
