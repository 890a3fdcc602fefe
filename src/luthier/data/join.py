"""Tables that belong together, as one: `questions.csv` and `answers.csv` joined on `question_id`.

The first file is read as a stream, the others are held in memory by the value of the column. A row of the first file becomes one row for
each combination of partners, and none if it lacks one (an inner join); both are counted. A column that is in more than one file is
called `file.column` (`questions.content`, `answers.content`). Values are compared as text, as csv files have nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any

from luthier.data.examples import Origin
from luthier.data.problems import RowProblem
from luthier.errors import UserError, did_you_mean

Rows = Iterable[tuple[Origin, Any]]


@dataclass
class Join:
    """Joins rows of several files on a column.

    Args:
        column: its name, the same in all files.

    Attributes:
        alone: file → rows without a partner.
    """

    column: str
    alone: Counter[str] = field(default_factory=Counter)

    def __call__(self, files: Sequence[tuple[str, Rows]]) -> Iterator[tuple[Origin, Any]]:
        """Yield the joined rows, each with the place of its row in the first file.

        Args:
            files: name and rows of each file, two at least.

        Raises:
            UserError: a file lacks the column.
        """
        opened = [(Path(name).name.partition(".")[0], *_opened(rows)) for name, rows in files]
        keys = [list(first) if isinstance(first, dict) else [] for _, first, _ in opened]
        for (name, _), names in zip(files, keys, strict=True):
            if self.column not in names:
                raise UserError(
                    f"there is no column `{self.column}` to join on", where=name, hint=did_you_mean(self.column, names)
                )
        often = Counter(key for names in keys for key in names)
        shared = {key for key, count in often.items() if count > 1}
        held = [self._held(rows, stem, shared) for stem, _, rows in opened[1:]]
        used: list[set[str]] = [set() for _ in held]
        stem, _, rows = opened[0]
        for origin, row in rows:
            if isinstance(row, RowProblem) or not isinstance(row, dict):
                yield origin, row
                continue
            key = str(row.get(self.column))
            partners = [table.get(key) for table in held]
            if not all(partners):
                self.alone[files[0][0]] += 1
                continue
            for seen in used:
                seen.add(key)
            mine = {self.column: row[self.column], **self._named(row, stem, shared)}
            for combination in product(*(partner or [] for partner in partners)):
                yield origin, {**mine, **{name: value for part in combination for name, value in part.items()}}
        for (name, _), table, seen in zip(files[1:], held, used, strict=True):
            left = sum(len(table[key]) for key in table.keys() - seen)
            if left:
                self.alone[name] += left

    def _held(self, rows: Rows, stem: str, shared: set[str]) -> dict[str, list[dict[str, Any]]]:
        """The rows of a file by the value of the column, without it.

        Raises:
            UserError: one cannot be read.
        """
        table: dict[str, list[dict[str, Any]]] = {}
        for origin, row in rows:
            if isinstance(row, RowProblem) or not isinstance(row, dict):
                what = row.message if isinstance(row, RowProblem) else "the row is no mapping, so it cannot be joined"
                raise UserError(what, where=str(origin))
            table.setdefault(str(row.get(self.column)), []).append(self._named(row, stem, shared))
        return table

    def _named(self, row: dict[str, Any], stem: str, shared: set[str]) -> dict[str, Any]:
        return {f"{stem}.{name}" if name in shared else name: value for name, value in row.items() if name != self.column}


def _opened(rows: Rows) -> tuple[Any, Rows]:
    """The first value, and all rows."""
    iterator = iter(rows)
    first = next(iterator, None)
    return (None, ()) if first is None else (first[1], chain([first], iterator))
