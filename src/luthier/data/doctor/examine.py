"""The examination: sources in, problems out, in one pass and a batch of rows at a time.

Rows go through the checks that look at one row, then through those that compare rows. Nothing of a row is kept but digests, lengths
and a few samples, so a file may be of any size. The validation data is read before the training data, so that a training row that
is in both is known when it comes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.chat import ChatTemplate
from luthier.data.doctor.alike import Alike
from luthier.data.doctor.kinds import KINDS, Finding
from luthier.data.doctor.languages import Languages
from luthier.data.doctor.lengths import Lengths
from luthier.data.doctor.row import Row, whole_text
from luthier.data.doctor.structure import read_row
from luthier.data.doctor.texts import check_texts
from luthier.data.doctor.tokens import Tokens
from luthier.data.doctor.turns import check_examples
from luthier.data.examples import Example, Origin
from luthier.data.read_examples import check_columns, choose_format
from luthier.data.registry import resolve
from luthier.data.sources import rows_of, title_of
from luthier.data.tokenizer import Tokenizer
from luthier.errors import UserError
from luthier.recipe.schema import Source

_ROWS, _CHARACTERS = 1_000, 1_000_000
"""A batch has at most so many rows, and at most one row more than so many characters."""
_PLACES = 8
SAMPLES = 6
"""Rows that are kept to be shown."""


@dataclass(frozen=True)
class Options:
    """How to examine.

    Args:
        ignore: kinds of problems that are not told.
        tokenizer: counts tokens; with it comes the template.
        template: the chat template.
        max_length: the most tokens a row may have.
    """

    ignore: frozenset[str] = frozenset()
    tokenizer: Tokenizer | None = None
    template: ChatTemplate | None = None
    max_length: int = 1024


@dataclass
class SourceSummary:
    """One source: its name, its format, rows, examples made of them, rows with an error, and whether it is validation data."""

    name: str
    format: str
    rows: int = 0
    examples: int = 0
    bad: int = 0
    validation: bool = False


@dataclass
class Tally:
    """How often a kind of problem was found, in how many rows, and where first."""

    found: int = 0
    rows: int = 0
    places: list[str] = field(default_factory=list)


class Examination:
    """One examination; `findings` does it, and the attributes say what came of it.

    Args:
        options: how.
        on_row: called with each row of the training data, its findings known.

    Attributes:
        sources: what was read.
        unreadable: what is wrong with what was not.
        tallies: name of the kind → how often.
        lengths: characters of each example.
        tokens: tokens of each example, if there is a tokenizer.
        languages: scripts of the rows.
        samples: some examples with their places, chosen evenly at random, the same ones each time.
    """

    def __init__(self, options: Options | None = None, on_row: Callable[[Row], None] | None = None) -> None:
        self.options = options or Options()
        self.sources: list[SourceSummary] = []
        self.unreadable: list[UserError] = []
        self.tallies: dict[str, Tally] = {}
        self.lengths, self.languages, self.alike = Lengths(), Languages(), Alike()
        self.samples: list[tuple[Origin, Example]] = []
        self.tokens: Tokens | None = None
        if self.options.tokenizer is not None and self.options.template is not None:
            self.tokens = Tokens(self.options.tokenizer, self.options.template, self.options.max_length)
        self._on_row = on_row
        self._random, self._offered = random.Random(0), 0

    @property
    def rows(self) -> int:
        """Rows read in all."""
        return sum(source.rows for source in self.sources)

    @property
    def errors(self) -> int:
        """Problems that are mistakes for certain."""
        return sum(tally.found for name, tally in self.tallies.items() if KINDS[name].level == "error")

    @property
    def warnings(self) -> int:
        """Problems that may be meant."""
        return sum(tally.found for name, tally in self.tallies.items() if KINDS[name].level == "warning")

    def findings(self, sources: Sequence[Source], validation: Sequence[Source] = ()) -> Iterator[Finding]:
        """Read everything and yield each problem.

        A source that cannot be read is noted in `unreadable`, and the next one is read.
        """
        for source in validation:
            yield from self._source(source, learnt=False)
        for source in sources:
            yield from self._source(source, learnt=True)
        for origin, row, what in self.languages.strangers() if "language" not in self.options.ignore else ():
            finding = Finding(KINDS["language"], origin, row, what)
            self._count([finding])
            yield finding

    def _source(self, source: Source, *, learnt: bool) -> Iterator[Finding]:
        try:
            source = resolve(source)
            chosen, rows = choose_format(source, rows_of(source))
            check_columns(chosen, source)
            summary = SourceSummary(title_of(source), chosen.NAME, validation=not learnt)
            self.sources.append(summary)
            for batch in _batches(rows):
                checked = [Row(origin, value, learnt=learnt) for origin, value in batch]
                for row in checked:
                    read_row(row, chosen, source.columns)
                yield from self._check(checked, summary)
        except UserError as error:
            self.unreadable.append(error)

    def _check(self, rows: Sequence[Row], summary: SourceSummary) -> Iterator[Finding]:
        """Let a batch go through all checks."""
        for row in rows:
            check_texts(row)
            check_examples(row)
            self._measure(row)
        self.alike(rows)
        if self.tokens:
            self.tokens(rows)
        for row in rows:
            row.findings = [finding for finding in row.findings if finding.kind.name not in self.options.ignore]
            summary.rows += 1
            summary.examples += len(row.examples)
            summary.bad += any(finding.kind.level == "error" for finding in row.findings)
            self._count(row.findings)
            yield from row.findings
            if self._on_row and row.learnt:
                self._on_row(row)

    def _measure(self, row: Row) -> None:
        for example in row.examples:
            text = whole_text(example)
            self.lengths.add(len(text))
            self.languages.add(text, row.origin, None)
            self._offered += 1
            place = len(self.samples) if len(self.samples) < SAMPLES else self._random.randrange(self._offered)
            if place < SAMPLES:
                self.samples[place : place + 1] = [(row.origin, example)]

    def _count(self, findings: Sequence[Finding]) -> None:
        for number, finding in enumerate(findings):
            tally = self.tallies.setdefault(finding.kind.name, Tally())
            tally.found += 1
            if all(finding.kind is not earlier.kind for earlier in findings[:number]):
                tally.rows += 1
                if len(tally.places) < _PLACES:
                    tally.places.append(str(finding.origin))


def examine(*paths: str | Path, options: Options | None = None) -> Examination:
    """Examine files to the end; what is told of each row is only counted."""
    examination = Examination(options)
    for _ in examination.findings([Source(path=str(path)) for path in paths]):
        pass
    return examination


def _batches(rows: Iterator[tuple[Origin, Any]]) -> Iterator[list[tuple[Origin, Any]]]:
    """Rows in batches of bounded size."""
    batch: list[tuple[Origin, Any]] = []
    size = 0
    for origin, value in rows:
        batch.append((origin, value))
        size += _size(value)
        if len(batch) >= _ROWS or size >= _CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(value: Any) -> int:
    """Characters in a row, roughly: those of its columns, where a list counts for its entries' texts."""
    if isinstance(value, str):
        return len(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(len(part) if isinstance(part, str) else 200 * len(part) if isinstance(part, list | dict) else 8 for part in parts)
