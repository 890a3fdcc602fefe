"""Building a token store: read, mask, tokenise, write, a batch of examples at a time.

While one batch is tokenised on other threads (outside Python), this one reads and renders the next and stores the one before, so at
most three batches are in memory, however large the data.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from luthier.data.encode import Encoder, Text
from luthier.data.examples import Example, Origin
from luthier.data.problems import LISTED, Problems, RowError
from luthier.data.read_examples import read_examples
from luthier.data.store import Header, Segment, SourceInfo, StoreWriter
from luthier.data.textfile import open_bytes, shown
from luthier.data.tokenizer import Encoded
from luthier.errors import UserError
from luthier.recipe.schema import Recipe, Source

_BATCH = 1_000_000
"""Characters that are tokenised together."""
_MOST_THREADS = 8


class Input(NamedTuple):
    """A file and what it is for.

    Args:
        source: the recipe's entry.
        split: `train` or `validation`.
    """

    source: Source
    split: str


class Draft(NamedTuple):
    """An example on its way: its number, source, and the texts of its segments."""

    number: int
    source: int
    example: Example
    texts: list[Text]

    @property
    def origin(self) -> Origin:
        """Where it came from."""
        return self.example.origin


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
        self._counts: Counter[str] = Counter()
        self._rungs: Counter[str] = Counter()
        self._sources: list[SourceInfo] = []
        self._lines = [0] * len(inputs)

    def __call__(self, writer: StoreWriter) -> Header:
        """Fill the writer; the header of what was written.

        Raises:
            UserError: bad rows under `on_error: fail`, or nothing to learn from.
        """
        threads = _threads(self._data.workers)
        waiting: tuple[list[Draft], Future[list[Encoded]]] | None = None
        with ThreadPoolExecutor(1) as pool:
            for drafts in self._batches():
                texts = [item.text for draft in drafts for item in draft.texts]
                coming = pool.submit(self._encoder.tokenizer.encode_batch, texts, threads)
                if waiting:
                    self._write(writer, waiting[0], waiting[1].result())
                waiting = drafts, coming
            if waiting:
                self._write(writer, waiting[0], waiting[1].result())
        self._problems.finish()
        if not writer.segments:
            raise UserError("no example is left to learn from", where="data.train", hint=self._why_empty())
        examples = self._counts["examples"]
        self._progress("tokenising", examples, examples)
        return self._header(writer)

    def _batches(self) -> Iterator[list[Draft]]:
        """Drafts of all files, in batches of about `_BATCH` characters; none once it is clear that the build will fail."""
        batch, size = [], 0
        for draft in self._drafts():
            if self._problems.count and self._problems.on_error == "fail":
                continue  # read on for the other bad rows
            batch.append(draft)
            size += sum(len(item.text) for item in draft.texts)
            if size >= _BATCH:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _drafts(self) -> Iterator[Draft]:
        settings, counts, problems = self._encoder.settings, self._counts, self._problems
        for number, (source, split) in enumerate(self._inputs):
            first, bad = counts["examples"], problems.count
            for example in read_examples(source, problems, stage=settings.stage, system=self._data.system):
                try:
                    yield Draft(counts["examples"], number, example, self._encoder.texts(example))
                except RowError as error:
                    problems.add(example.origin, str(error))
                    counts["refused"] += 1
                counts["examples"] += 1
            read = counts["examples"] - first
            self._sources.append(SourceInfo(shown(Path(source.path)), split, first, read))
            if problems.count == bad and not read:
                raise UserError("there is no example in it", where=shown(Path(source.path)))

    def _write(self, writer: StoreWriter, drafts: list[Draft], encoded: list[Encoded]) -> None:
        """Segments of a batch into the store."""
        remaining = iter(encoded)
        segments: list[Segment] = []
        for draft in drafts:
            mine: Sequence[Encoded] = [next(remaining) for _ in draft.texts]
            try:
                texts, mine, turns = self._encoder.shortened(draft.example, draft.texts, mine)
                pieces = self._encoder.pieces(texts, mine)
            except RowError as error:
                self._problems.add(draft.origin, str(error))
                self._counts["refused"] += 1
                continue
            self._counts["dropped"] += pieces is None
            if turns and pieces:
                self._counts["shortened"] += 1
                self._counts["turns"] += turns
            for tokens, weight, rung, truncated in pieces or ():
                group = writer.segments + len(segments)
                segments.append(Segment(tokens, weight, draft.number, draft.source, group, draft.origin.line))
                self._rungs[rung] += 1
                self._counts["truncated"] += truncated
                self._counts["supervised"] += int((weight != 0).sum())
        writer.write(segments)
        self._tell(drafts[-1])

    def _tell(self, last: Draft) -> None:
        """Progress in examples; how many there will be is estimated from the lines of the files behind and ahead."""
        if not self._lines[last.source]:
            self._lines = [_count_lines(Path(source.path)) for source, _ in self._inputs]
        done, total = last.number + 1, sum(self._lines)
        behind = sum(self._lines[: last.source]) + last.origin.line
        self._progress("tokenising", done, max(done + 1, done * total // behind) if total > behind else 0)

    def _why_empty(self) -> str:
        counts, limit = self._counts, self._encoder.settings.max_length
        if counts["dropped"]:
            return f"{counts['dropped']:,} of {counts['examples']:,} are too long for `data.max_length: {limit}`."
        return f"All {self._problems.count:,} rows are bad and were skipped."

    def _header(self, writer: StoreWriter) -> Header:
        counts, skipped = self._counts, self._problems.count
        settings, template = self._encoder.settings, self._encoder.template
        return Header(
            key=self._key,
            stage=settings.stage,
            template=template.name if template else None,
            max_length=settings.max_length,
            segments=writer.segments,
            tokens=writer.tokens,
            sources=tuple(self._sources),
            counts={
                "rows": counts["examples"] + skipped - counts["refused"],
                **{name: counts[name] for name in ("examples", "supervised", "truncated", "dropped")},
                "skipped": skipped,
            },
            rungs=dict(self._rungs),
            bad=tuple(self._problems.by_kind(LISTED)),
        )


def _count_lines(path: Path) -> int:
    """Lines of a text file; 1 for a file that has none."""
    with open_bytes(path) as file:
        if file.peek(4)[:4] == b"PAR1":
            return 1
        return max(1, sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")))


def _threads(workers: int | None) -> int:
    """Threads for tokenisation: as asked, else one for each core that this process may use, within OMP_NUM_THREADS."""
    if workers:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, _MOST_THREADS, int(limit) if limit.isdigit() and int(limit) else _MOST_THREADS)
