"""What happened to the data on its way into tokens, counted for each source, for people and for the run's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from luthier.data.pipeline import total


@dataclass(frozen=True)
class Counts:
    """Named numbers. Nothing is dropped or cut without appearing here.

    Args:
        rows: rows that were read, bad ones included.
        examples: examples made from them.
        segments: token sequences in the store.
        tokens: tokens in the store.
        supervised: tokens with a loss weight.
        truncated: segments that were cut to `max_length`.
        shortened: examples that lost their oldest exchanges (`truncate: turns`).
        turns: exchanges that they lost.
        dropped: examples left out because of their length: by `truncate: drop`, or as nothing to learn was left of them.
        skipped: bad rows left out (`data.on_error: skip`).
        empty: examples with an answer that says nothing.
        letters: examples in which control tokens are written that are read as letters.
        train: units (sft: examples, pt: chunks) of one training epoch, source weights included.
        validation: units held out.
    """

    rows: int = 0
    examples: int = 0
    segments: int = 0
    tokens: int = 0
    supervised: int = 0
    truncated: int = 0
    shortened: int = 0
    turns: int = 0
    dropped: int = 0
    skipped: int = 0
    empty: int = 0
    letters: int = 0
    train: int = 0
    validation: int = 0

    def losses(self, max_length: int) -> list[str]:
        """What was cut, left out or skipped, in words; nothing where nothing was."""
        told = []
        if self.shortened:
            share = _share(self.shortened, self.examples)
            told.append(
                f"too long for {max_length:,} tokens: {share} examples lost their oldest exchanges, {self.turns:,} in all"
            )
        if self.truncated:
            told.append(f"cut to {max_length:,} tokens: {_share(self.truncated, self.segments)} segments (data.truncate)")
        if self.dropped:
            told.append(f"left out, too long for {max_length:,} tokens: {_share(self.dropped, self.examples)} examples")
        if self.skipped:
            told.append(f"bad rows skipped: {_share(self.skipped, self.rows)} (data.on_error: skip)")
        return told

    def made(self) -> str:
        """What there is to learn, in words."""
        share = self.supervised / self.tokens if self.tokens else 0.0
        learnt = f", {share:.0%} supervised" if self.supervised else ""
        return f"{self.examples:,} examples, {self.segments:,} segments, {self.tokens:,} tokens{learnt}"


@dataclass(frozen=True)
class SourceReport(Counts):
    """The counts of one source.

    Args:
        name: the source in metrics and reports.
    """

    name: str = ""

    def line(self) -> str:
        """The source in one line: what came of it, and what was lost."""
        given = f"; {self.train:,} an epoch" if self.train else ""
        held = f"; {self.validation:,} held out" if self.validation else ""
        lost = {"shortened": self.shortened, "cut": self.truncated, "left out": self.dropped, "bad": self.skipped}
        lost |= {"with an empty answer": self.empty, "with control tokens": self.letters}
        told = "".join(f"; {count:,} {word}" for word, count in lost.items() if count)
        return f"  {self.name}: {self.made()}{given}{held}{told}"


@dataclass(frozen=True)
class DataReport(Counts):
    """Counts over all sources of a run.

    Args:
        sources: the same for each source.
        rungs: rung of the mask ladder → segments.
        bad: what was wrong with the rows that were skipped, one line for each kind, with file and lines.
        template: name of the chat template, None without one.
        max_length: longest segment allowed, in tokens.
        places: of what is counted as `empty` and `letters`, the first place.
        streamed: sources that are read on the way; their counts are known when they have been read.
        cached: the store was there already.
        seconds: time it took to prepare.
    """

    sources: tuple[SourceReport, ...] = ()
    rungs: Mapping[str, int] = field(default_factory=dict)
    bad: tuple[str, ...] = ()
    template: str | None = None
    max_length: int = 0
    places: Mapping[str, str] = field(default_factory=dict)
    streamed: list[str] = field(default_factory=list)
    cached: bool = False
    seconds: float = 0.0

    def used(self, counts: Sequence[Mapping[str, int]], names: Sequence[str]) -> DataReport:
        """The report of a stream after it was read, from the counts of each source."""
        sources = tuple(SourceReport(**each, name=name) for each, name in zip(counts, names, strict=True))
        sums: dict[str, Any] = total(counts)
        return replace(self, sources=sources, **sums)

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report in words: what was read and made, of each source where there are several, then what was cut or left out."""
        how = "from the cache" if self.cached else f"in {self.seconds:.1f} s"
        lines = [f"data: {self.made()} ({how})"]
        if self.streamed and not self.rows:
            lines = [f"data: {', '.join(self.streamed)}; read and tokenised on the way"]
        if len(self.sources) > 1:
            lines += [source.line() for source in self.sources]
        if self.validation:
            lines.append(f"held out for validation: {self.validation:,}; trained on: {self.train:,}")
        if self.template:
            rungs = ", ".join(f"{name} {count:,}" for name, count in sorted(self.rungs.items()))
            lines.append(f"template {self.template}; mask found by: {rungs or 'nothing'}")
        return lines + self.losses(self.max_length) + self.oddities() + [f"  {kind}" for kind in self.bad if self.skipped]

    def oddities(self) -> list[str]:
        """What was learnt as it is and may not be meant, in words, with its first place; nothing where nothing was."""
        words = {
            "empty": (self.empty, "an empty answer, from which the model learns to say nothing", "`luthier data check --fix`"),
            "letters": (self.letters, "control tokens written in the data, read as letters", "data.control_tokens"),
        }
        told = []
        for name, (count, what, see) in words.items():
            first = f", first at {self.places[name]}" if name in self.places else ""
            told += [f"{what}: {_share(count, self.examples)} examples{first} ({see})"] if count else []
        return told


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({part / whole:.1%})" if whole else f"{part:,}"
