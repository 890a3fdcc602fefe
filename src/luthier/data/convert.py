"""From one format to another, losing nothing in silence.

Each example is written in the target format, read back, and compared with what it was. What is missing then was lost, whatever the
reason, and is counted with the place where it first happened. Rows that the target has no place for at all (tool calls in alpaca) are
left out and counted alike. `strict` refuses both, and leaves no file behind.

Columns that belong to no format (ids, sources, scores) are lost too, and told, unless they are named in `keep`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.data.examples import Example, Origin
from luthier.data.formats import READ_ONLY, Format
from luthier.data.formats.lost import losses as losses_of
from luthier.data.problems import Problems, RowError, RowProblem, printable
from luthier.data.read_examples import parse
from luthier.data.write import RowWriter
from luthier.errors import UserError

Rows = Iterable[tuple[Origin, Any]]
Taken = tuple[Origin, Any, Example]
"""An example with its row and where that stands."""


@dataclass(frozen=True)
class Plan:
    """What is taken, and how it is written.

    Args:
        source: the format that is read.
        target: the format that is written.
        columns: canonical name → name in the file.
        where: says whether a row is taken.
        fill: fills in placeholders.
        limit: at most so many examples, the first ones.
        sample: so many examples, chosen evenly by `seed`, in their order.
        seed: of the sample.
        keep: columns that are carried along as they are.
        strict: refuse what cannot be held.
    """

    source: Format
    target: Format
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Callable[[Any, Origin], bool] | None = None
    fill: Callable[[Example], Example] | None = None
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    keep: tuple[str, ...] = ()
    strict: bool = False


class Losses:
    """What was lost, by kind: how often, and where first.

    Args:
        strict: whether the first loss ends the conversion.
    """

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, what: str, origin: Origin) -> None:
        """Take note of one.

        Raises:
            UserError: the conversion is strict.
        """
        if self._strict:
            raise UserError(f"would lose {what}", where=str(origin), hint="Choose another format, or leave --strict out.")
        self.counts[what] = self.counts.get(what, 0) + 1
        self.first.setdefault(what, str(origin))

    def lines(self) -> list[str]:
        """Each loss in a line."""
        ordered = sorted(self.counts, key=lambda what: -self.counts[what])
        return [
            f"  lost: {what}, in {self.counts[what]:,} {'row' if self.counts[what] == 1 else 'rows'}, first at {self.first[what]}"
            for what in ordered
        ]


def convert(rows: Rows, plan: Plan, writer: RowWriter, problems: Problems) -> Losses:
    """Write the examples of rows in another format.

    Args:
        rows: as `read_rows` gives them.
        plan: what is taken, and how it is written.
        writer: takes the rows that are made.
        problems: takes the rows that cannot be read; the caller finishes it.

    Returns:
        What was lost.

    Raises:
        UserError: nothing is left to write, the target format is only read, or `strict` met a loss.
    """
    if plan.target.NAME in READ_ONLY:
        raise UserError(f"format `{plan.target.NAME}` is only read", where="--to", hint="Choose messages, sharegpt or alpaca.")
    losses = Losses(plan.strict)
    scribe = _Scribe(plan, losses, writer)
    found = _examples(rows, plan, problems)
    count = 0
    for origin, row, example in _sampled(found, plan):
        count += 1
        if problems.count and problems.on_error == "fail":
            continue  # read on for the other bad rows
        scribe.write(origin, row, plan.fill(example) if plan.fill else example)
    if not count and not problems.count:
        raise UserError("no row is taken", hint="See `--where`." if plan.where else None)
    if count and not writer.rows and not problems.count:
        reason = next(iter(losses.counts))
        raise UserError(f"format `{plan.target.NAME}` can hold none of the rows: {reason}", where=losses.first[reason])
    return losses


def _examples(rows: Rows, plan: Plan, problems: Problems) -> Iterator[Taken]:
    """The examples that are wanted, up to `limit`."""
    left = plan.limit
    for origin, row in rows:
        if left is not None and left <= 0:
            return
        if plan.where and not isinstance(row, RowProblem) and not plan.where(row, origin):
            continue
        try:
            examples = parse(plan.source, row, origin, plan.columns)
        except RowError as error:
            problems.add(origin, str(error), fatal=isinstance(row, RowProblem) and row.fatal)
            continue
        for example in examples[:left]:
            yield origin, row, example
        left = None if left is None else left - len(examples)


def _sampled(found: Iterator[Taken], plan: Plan) -> Iterator[Taken]:
    """A sample of the examples in their order, held in memory; all of them where none is asked for."""
    if plan.sample is None:
        yield from found
        return
    chosen: list[tuple[int, Taken]] = []
    drawn = random.Random(plan.seed)
    for number, taken in enumerate(found):
        if len(chosen) < plan.sample:
            chosen.append((number, taken))
        elif (place := drawn.randrange(number + 1)) < plan.sample:
            chosen[place] = number, taken
    yield from (taken for _, taken in sorted(chosen, key=lambda pair: pair[0]))


class _Scribe:
    """Writes examples, each read back as the file will give it; what differs is a loss."""

    def __init__(self, plan: Plan, losses: Losses, writer: RowWriter) -> None:
        self._plan, self._losses, self._writer = plan, losses, writer
        self._columns: set[str] = set()
        self._first: tuple[Example, Any] | None = None

    def write(self, origin: Origin, row: Any, example: Example) -> None:
        """Write one example, and take note of what it loses."""
        for name in self._left_behind(row, example):
            self._losses.add(f"the column `{printable(name)}` (see --keep)", origin)
        plan = self._plan
        try:
            made = plan.target.write(example)
            missing = self._missing(example, made)
            self._check_first(made)
            self._writer.write(_with_kept(made, row, plan.keep) if plan.keep else made)
        except RowError as error:
            self._losses.add(f"the whole row ({error})", origin)
            return
        self._first = self._first or (example, made)
        for what in missing:
            self._losses.add(what, origin)

    def _missing(self, example: Example, made: Any) -> list[str]:
        """What of an example is not in its written row."""
        return losses_of(example, self._plan.target.parse(self._writer.as_read(made), example.origin, {}))

    def _check_first(self, made: Any) -> None:
        """In a table a new column is a blank cell in all rows before it. That must not change what the first of them means.

        Raises:
            RowError: it would.
        """
        if not isinstance(made, dict) or made.keys() <= self._columns:
            return
        if self._first is not None:
            example, row = self._first
            before = self._missing(example, row)
            blank = {**dict.fromkeys(made, self._writer.blank), **row} if self._writer.is_table else row
            try:
                spoilt = self._missing(example, blank) != before
            except RowError:
                spoilt = True
            if spoilt:
                raise RowError("a table with such rows and others besides cannot be read; write .jsonl")
        self._columns |= made.keys()

    def _left_behind(self, row: Any, example: Example) -> list[str]:
        """Columns of a row that no example holds."""
        if not isinstance(row, dict):
            return []
        plan = self._plan
        known = {plan.columns.get(name, name) for name in plan.source.COLUMNS} | set(plan.keep)
        if row.keys() <= known:
            return []
        try:
            own = plan.source.write(
                example
            )  # some columns, such as labels, are known to the format though it does not rename them
        except RowError:
            own = {}
        return sorted(row.keys() - known - (own.keys() if isinstance(own, dict) else set()))


def _with_kept(made: Any, row: Any, keep: tuple[str, ...]) -> Any:
    """A written row with columns of the one that was read.

    Raises:
        RowError: there is no room for them.
    """
    if not isinstance(made, dict) or not isinstance(row, dict):
        raise RowError("a row without columns has no place for `--keep`")
    if clash := [name for name in keep if name in made]:
        raise RowError(f"`--keep {clash[0]}` is a column of the target format")
    return {**made, **{name: row[name] for name in keep if name in row}}
