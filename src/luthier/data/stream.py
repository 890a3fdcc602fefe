"""One source as a stream: its units one after the other, tokenised on the way, from any place on.

A unit knows where its row was read and how many units that row had given before, so a stream goes on after any unit without
reading from the start: JSON lines by bytes, parquet by groups of rows, folders and data sets of many files by file. A packed file is
unpacked up to the place, a file of any other kind read up to it. Files far away are read where they lie (`far_file`), and a data set on
a hub goes on with the commit that it began with.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

from luthier.data.encode import Encoder, Piece
from luthier.data.examples import Example, Origin
from luthier.data.fill import Filler
from luthier.data.parts import Part
from luthier.data.pipeline import Made, Pipeline
from luthier.data.problems import Problems
from luthier.data.read import read_rows
from luthier.data.read_examples import choose_format, read_examples
from luthier.data.read_json import Row
from luthier.data.sources import headless, parts_of, rows_of, title_of
from luthier.data.textfile import Mark
from luthier.errors import UserError
from luthier.recipe.schema import Data, Source

AHEAD = 100_000
"""Characters that are tokenised together: less than for a store, so that the first batch does not wait for them."""


@dataclass(frozen=True)
class Place:
    """Where a row is read: a file of the source, and a mark in it."""

    part: int = 0
    mark: Mark = field(default_factory=Mark)


class Unit(NamedTuple):
    """What a batch counts.

    Args:
        pieces: its segments.
        origin: of its row.
        counts: what was counted on the way to it.
        place: where its row was read.
        number: of the units of that row, from 1.
        example: number of its example in the source, from 0.
    """

    pieces: tuple[Piece, ...]
    origin: Origin
    counts: Counter[str]
    place: Place
    number: int
    example: int

    @property
    def tokens(self) -> int:
        """Tokens of all its segments."""
        return sum(len(piece.tokens) for piece in self.pieces)


class SourceStream:
    """The units of one source, over and over.

    Args:
        source: where they come from, with its path.
        encoder: makes segments of examples.
        data: the recipe's section.
        state: of an earlier stream, to go on after the unit it gave last.

    Attributes:
        units: units given in this pass.
    """

    def __init__(self, source: Source, encoder: Encoder, data: Data, state: dict[str, Any] | None = None) -> None:
        self.source, self._encoder, self._data = source, encoder, data
        self.units = self._tokens = 0
        self._last: Unit | None = None
        self._place, self._skip, self._first = Place(), 0, 0
        if state:
            known = {"revision": state["commit"]} if state.get("commit") else {}
            self.source = source.model_copy(update={"format": state["format"], **known})
            self.units, self._tokens = state["units"], state["tokens"]
            self._place = Place(state["part"], Mark(**state["mark"]))
            self._skip, self._first = state["skip"], state["first"]
            self._check(state["file"], state.get("version"))
        elif source.format == "auto":
            chosen, _ = choose_format(source, rows_of(source, on_the_way=True), encoder.settings.stage)
            self.source = source.model_copy(update={"format": chosen.NAME})
        self._reading = self._read()

    def take(self) -> Unit | None:
        """The next unit; None at the end of a pass, after which the source begins anew.

        Raises:
            UserError: a bad row under `on_error: fail`, or there is nothing to learn from.
        """
        unit, most = next(self._reading, None), self.source.max_tokens
        if unit is not None and (most is None or not self.units or self._tokens + unit.tokens <= most):
            self.units += 1
            self._tokens += unit.tokens
            self._last = unit
            return unit
        if not self.units:
            raise UserError("no example is left to learn from", where=title_of(self.source))
        self.restart()
        return None

    def restart(self) -> None:
        """Begin anew."""
        self.units = self._tokens = self._skip = self._first = 0
        self._place, self._last = Place(), None
        self._reading = self._read()

    def state(self) -> dict[str, Any]:
        """Where it stands, as plain data."""
        last = self._last
        place = last.place if last else self._place
        part = self._part(place.part)
        return {
            "format": self.source.format,
            "units": self.units,
            "tokens": self._tokens,
            "part": place.part,
            "file": part.name if part else "",
            "version": part.version if part else None,
            "commit": part.commit if part else None,
            "mark": asdict(place.mark),
            "skip": last.number if last else self._skip,
            "first": last.example if last else self._first,
        }

    def _read(self) -> Iterator[Unit]:
        data, trail = self._data, Trail(self.source, self._place)
        problems, left = Problems(data.on_error), self.source.max_examples
        pipeline = Pipeline(self._encoder, problems, workers=data.workers, batch=AHEAD)
        rest = self.source.model_copy(update={"max_examples": left - self._first if left else None})
        stage, fill = self._encoder.settings.stage, Filler(data.variables, data.replace)
        examples = read_examples(rest, problems, stage=stage, system=data.system, fill=fill, rows=trail.rows())
        placed = trail.placed(examples, self._first)
        if left is not None and left <= self._first:
            return
        made = pipeline.made(pipeline.drafts(0, placed, self._first))
        yield from islice(_units(made, problems, chunks=stage == "pt"), self._skip, None)

    def _part(self, number: int) -> Part | None:
        """A file of the source, by whose name and version a changed source is known."""
        parts = parts_of(self.source) if self.source.path else ()
        return parts[number] if number < len(parts) else None

    def _check(self, file: str, version: str | None) -> None:
        part = self._part(self._place.part)
        name, now = (part.name, part.version) if part else ("", None)
        if name != file or (version and now != version):
            is_it = "which has another content now" if name == file else "which is no longer in its place"
            raise UserError(
                f"the source has changed: the run stood in `{file}`, {is_it}",
                where=title_of(self.source),
                hint="Restore the files, or start a new run.",
            )


def _units(made: Iterator[list[Made]], problems: Problems, *, chunks: bool) -> Iterator[Unit]:
    """The units of all examples; what was counted between two of them is told by the second."""
    row, given, between = None, 0, Counter[str]()
    for batch in made:
        problems.finish()
        for draft, pieces, counts in batch:
            between.update(counts)
            place, first = draft.place
            if place is not row:
                row, given = place, 0
            for some in [(piece,) for piece in pieces] if chunks else [tuple(pieces)] * bool(pieces):
                given += 1
                yield Unit(some, draft.origin, between, place, given, first)
                between = Counter()
    problems.finish()


class Trail:
    """The rows of a source from a place on, and where each was read.

    Rows are read a little ahead of the examples that are made of them, so places are noted on the way and looked up by origin.
    """

    def __init__(self, source: Source, place: Place) -> None:
        self._source, self._place = source, place
        self._noted: deque[tuple[Origin, Place]] = deque()

    def rows(self) -> Iterator[Row]:
        """The rows; each is noted as it passes."""
        if not self._source.python:
            yield from self._files()
            return
        from luthier.data.python_source import mapped_rows, yielded_rows

        if self._source.path:
            yield from mapped_rows(self._source.python, self._files())
            return
        done = self._place.mark.row
        for number, (origin, row) in enumerate(islice(yielded_rows(self._source.python), done, None), done):
            self._noted.append((origin, Place(0, Mark(number))))
            yield origin, row

    def placed(self, examples: Iterator[Example], first: int) -> Iterator[tuple[Example, tuple[Place, int]]]:
        """Each example with the place of its row and the number of that row's first example, counted from `first`."""
        row = None
        for number, example in enumerate(examples, first):
            while self._noted[0][0] != example.origin:
                self._noted.popleft()
            if self._noted[0][1] is not row:
                row, begin = self._noted[0][1], number
            yield example, (row, begin)

    def _files(self) -> Iterator[Row]:
        source = self._source
        for number, part in enumerate(parts_of(source)):
            if number < self._place.part:
                continue
            mark = replace(self._place.mark) if number == self._place.part else Mark()
            before, file = Place(number, replace(mark)), part.file(on_the_way=True)
            for origin, row in read_rows(file, documents=source.documents, headless=headless(source), mark=mark):
                self._noted.append((origin, before))
                yield origin, row
                before = Place(number, replace(mark))
