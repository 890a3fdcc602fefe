"""A cleaned copy: rows with a mistake are left out, characters that do no good are taken out, and each change is counted.

Nothing is guessed. What cannot be mended with certainty (a placeholder, a phone number, a row that is too long) stays in the copy and
is told again. Rows keep their format; the copy is UTF-8.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from luthier.data.doctor.kinds import KINDS
from luthier.data.doctor.row import DEEPEST, Row
from luthier.data.doctor.texts import CONTROLS, check_texts, is_mojibake
from luthier.data.problems import RowError
from luthier.data.write import RowWriter

_BREAKS = "\x0b\x0c\x85\u2028\u2029"
"""Odd characters that stand for the end of a line."""


class Mender:
    """Writes the rows of an examination as they should be; give it as `on_row`.

    Args:
        writer: takes the rows.
        drop: further kinds of problems whose rows are left out.

    Attributes:
        left_out: kind → rows left out because of it (the first one of each row).
        edited: kind → rows that were edited.
        kept: kind → rows that still have the problem.
    """

    def __init__(self, writer: RowWriter, drop: frozenset[str] = frozenset()) -> None:
        self._writer, self._drop = writer, drop
        self.left_out: Counter[str] = Counter()
        self.edited: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()

    def __call__(self, row: Row) -> None:
        """Write one row, mended, or leave it out."""
        kinds = list(dict.fromkeys(finding.kind for finding in row.findings))
        out = next((kind.name for kind in kinds if kind.mended == "left out" or kind.name in self._drop), None)
        if out or not row.readable:
            self.left_out[out or "broken"] += 1
            return
        edits = {kind.name for kind in kinds if kind.mended == "edited"}
        value = mended(row.value, edits) if edits else row.value
        try:
            self._writer.write(value)
        except RowError:
            self.left_out["format"] += 1
            return
        remaining = _remaining(row, value) if edits else set()
        for kind in kinds:
            gone = kind.name in edits and kind.name not in remaining
            (self.edited if gone else self.kept)[kind.name] += 1

    def lines(self) -> list[str]:
        """What was done, in words."""
        words = [("left out", self.left_out), ("edited", self.edited), ("still in it", self.kept)]
        told = [
            f"  {what}: {count:,} {'row' if count == 1 else 'rows'} · {name}: {KINDS[name].about}"
            for what, counts in words
            for name, count in counts.most_common()
        ]
        rows = "1 row" if self._writer.rows == 1 else f"{self._writer.rows:,} rows"
        return [f"{self._writer.path}: {rows} written", *(told or ["  nothing had to be changed"])]


def mended(value: Any, edits: set[str], levels: int = DEEPEST) -> Any:
    """A row with its texts mended, as far down as they were checked; `edits` are the kinds to mend."""
    if isinstance(value, str):
        return _mended_text(value, edits)
    if isinstance(value, dict) and levels:
        return {key: mended(part, edits, levels - 1) for key, part in value.items()}
    return [mended(part, edits, levels - 1) for part in value] if isinstance(value, list | tuple) and levels else value


def _mended_text(text: str, edits: set[str]) -> str:
    if "mojibake" in edits and is_mojibake(text):
        from ftfy import fix_encoding

        text = fix_encoding(text)
    if "control" in edits:
        text = CONTROLS.sub(lambda found: "\n" if found[0] in _BREAKS else "", text)
    return text


def _remaining(row: Row, value: Any) -> set[str]:
    """Kinds that a mended row still has: not all that was decoded wrongly can be told back."""
    again = Row(row.origin, value)
    check_texts(again)
    return {finding.kind.name for finding in again.findings}
