"""What happened to the data on its way into tokens, counted, for people and for the run's record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataReport:
    """Counts over all sources of a run. Nothing is dropped or cut without appearing here.

    Args:
        rows: rows that were read, bad ones included.
        examples: examples made from them.
        segments: token sequences in the store.
        tokens: tokens in the store.
        supervised: tokens with a loss weight.
        truncated: segments that were cut to `max_length`.
        dropped: examples left out because of their length: by `truncate: drop`, or as nothing to learn was left of them.
        skipped: bad rows left out (`data.on_error: skip`).
        train: units (sft: examples, pt: chunks) of one training epoch, source weights included.
        validation: units held out.
        rungs: rung of the mask ladder → segments.
        bad: what was wrong with the rows that were skipped, one line for each kind, with file and lines.
        template: name of the chat template, None without one.
        max_length: longest segment allowed, in tokens.
        cached: the store was there already.
        seconds: time it took to prepare.
    """

    rows: int
    examples: int
    segments: int
    tokens: int
    supervised: int
    truncated: int
    dropped: int
    skipped: int
    train: int
    validation: int
    rungs: Mapping[str, int] = field(default_factory=dict)
    bad: tuple[str, ...] = ()
    template: str | None = None
    max_length: int = 0
    cached: bool = False
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report in words: what was read and made, then what was cut, dropped or skipped."""
        share = self.supervised / self.tokens if self.tokens else 0.0
        how = "from the cache" if self.cached else f"in {self.seconds:.1f} s"
        made = f"{self.examples:,} examples, {self.segments:,} segments, {self.tokens:,} tokens"
        lines = [f"data: {made}, {share:.0%} supervised ({how})"]
        if self.validation:
            lines.append(f"held out for validation: {self.validation:,}; trained on: {self.train:,}")
        if self.template:
            rungs = ", ".join(f"{name} {count:,}" for name, count in sorted(self.rungs.items()))
            lines.append(f"template {self.template}; mask found by: {rungs or 'nothing'}")
        if self.truncated:
            lines.append(f"cut to {self.max_length:,} tokens: {_share(self.truncated, self.segments)} segments (data.truncate)")
        if self.dropped:
            lines.append(f"left out, too long for {self.max_length:,} tokens: {_share(self.dropped, self.examples)} examples")
        if self.skipped:
            lines.append(f"bad rows skipped: {_share(self.skipped, self.rows)} (data.on_error: skip)")
            lines += [f"  {kind}" for kind in self.bad]
        return lines


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({part / whole:.1%})" if whole else f"{part:,}"
