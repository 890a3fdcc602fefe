"""Building a token store: all sources through the pipeline, and its segments to disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from luthier.data.encode import Encoder
from luthier.data.examples import Example
from luthier.data.fill import Filler
from luthier.data.pipeline import COUNTED, Draft, Made, Pipeline, total
from luthier.data.problems import LISTED, Problems
from luthier.data.read_examples import read_examples
from luthier.data.sources import file_names, lines_of, title_of
from luthier.data.store import Header, Segment, SourceInfo, StoreWriter
from luthier.errors import UserError
from luthier.recipe.schema import Recipe, Source


class Input(NamedTuple):
    """A file and what it is for.

    Args:
        source: the recipe's entry.
        split: `train` or `validation`.
    """

    source: Source
    split: str


class Build:
    """One building of one store; call it with the writer.

    Args:
        key: content address of the store.
        inputs: the files, in order.
        encoder: makes segments of examples.
        recipe: for the policy on bad rows, the default system prompt and the number of threads.
        progress: see `prepare`.
    """

    def __init__(
        self, key: str, inputs: list[Input], encoder: Encoder, recipe: Recipe, progress: Callable[[str, int, int], None]
    ) -> None:
        self._key, self._inputs, self._encoder, self._data, self._progress = key, inputs, encoder, recipe.data, progress
        self._problems = Problems(recipe.data.on_error)
        self._pipeline = Pipeline(encoder, self._problems, workers=recipe.data.workers)
        self._examples: list[tuple[int, int]] = []
        self._lines = [0] * len(inputs)
        self._files = [{name: number for number, name in enumerate(file_names(source))} for source, _ in inputs]
        self._fill = Filler(recipe.data.variables, recipe.data.replace)

    def __call__(self, writer: StoreWriter) -> Header:
        """Fill the writer; the header of what was written.

        Raises:
            UserError: bad rows under `on_error: fail`, or nothing to learn from.
        """
        for batch in self._pipeline.made(self._drafts()):
            self._write(writer, batch)
        self._problems.finish()
        header = self._header(writer)
        if not writer.segments:
            raise UserError("no example is left to learn from", where="data.train", hint=self._why_empty(header))
        self._progress("tokenising", header.counts["examples"], header.counts["examples"])
        return header

    def _drafts(self) -> Iterator[Draft]:
        """Drafts of all files; none once it is clear that the build will fail, but the other bad rows are looked for."""
        problems, first = self._problems, 0
        for number, (source, _) in enumerate(self._inputs):
            bad = problems.count
            examples = read_examples(
                source, problems, stage=self._encoder.settings.stage, system=self._data.system, fill=self._fill
            )
            for draft in self._pipeline.drafts(number, _placeless(examples), first):
                if not problems.count or problems.on_error == "skip":
                    yield draft
            read = self._pipeline.read[number]
            self._examples.append((first, read))
            first += read
            if problems.count == bad and not read:
                raise UserError("there is no example in it", where=title_of(source))

    def _write(self, writer: StoreWriter, batch: list[Made]) -> None:
        """Segments of a batch into the store."""
        segments: list[Segment] = []
        for draft, pieces, _ in batch:
            files, origin = self._files[draft.source], draft.origin
            file = files.setdefault(origin.file, len(files))
            first = writer.segments + len(segments)
            for number, piece in enumerate(pieces):
                group = first if piece.label >= 0 else first + number  # the two sides of a pair stay together
                place = (draft.number, draft.source, group, origin.line, piece.label, file, piece.payload)
                segments.append(Segment(piece.tokens, piece.weight, *place))
        writer.write(segments)
        self._tell(batch[-1].draft)

    def _tell(self, last: Draft) -> None:
        """Progress in examples; how many there will be is estimated from the lines of the files behind and ahead."""
        if not self._lines[last.source]:
            self._lines = [lines_of(source) for source, _ in self._inputs]
        done, total = last.number + 1, sum(self._lines)
        behind = sum(self._lines[: last.source]) + last.origin.line
        self._progress("tokenising", done, max(done + 1, done * total // behind) if total > behind else 0)

    def _why_empty(self, header: Header) -> str:
        counts = header.counts
        if counts["dropped"]:
            return f"{counts['dropped']:,} of {counts['examples']:,} are too long for `data.max_length: {header.max_length}`."
        return f"All {counts['skipped']:,} rows are bad and were skipped."

    def _header(self, writer: StoreWriter) -> Header:
        settings, template, pipeline = self._encoder.settings, self._encoder.template, self._pipeline
        return Header(
            key=self._key,
            stage=settings.stage,
            template=template.name if template else None,
            max_length=settings.max_length,
            segments=writer.segments,
            tokens=writer.tokens,
            payload=writer.payload,
            sources=tuple(self._sources()),
            counts=total(pipeline.counts.values()),
            rungs=dict(pipeline.rungs),
            bad=tuple(self._problems.by_kind(LISTED)),
            places=pipeline.places,
        )

    def _sources(self) -> Iterator[SourceInfo]:
        for number, ((source, split), (first, read)) in enumerate(zip(self._inputs, self._examples, strict=True)):
            counts = {name: self._pipeline.counts[number][name] for name in COUNTED}
            yield SourceInfo(title_of(source), split, first, read, counts, tuple(self._files[number]))


def _placeless(examples: Iterable[Example]) -> Iterator[tuple[Example, Any]]:
    """Examples of which nobody asks where reading would go on."""
    return ((example, None) for example in examples)
