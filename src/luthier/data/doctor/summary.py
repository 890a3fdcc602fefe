"""What came of an examination, for the terminal and as JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from luthier.data.doctor.examine import Examination
from luthier.data.doctor.kinds import KINDS
from luthier.data.doctor.lengths import Lengths

_BAR = 40
_PLACES = 4


def lines(examination: Examination) -> Iterator[str]:
    """The summary: files, a table of kinds, languages, and a histogram of lengths."""
    for source in examination.sources:
        use = ", for validation" if source.validation else ""
        made = "" if source.examples == source.rows else f", {source.examples:,} examples"
        yield f"{source.name}: {counted(source.rows, 'row')} as `{source.format}`{use}{made}, {source.bad:,} with errors"
    if examination.tallies:
        yield ""
        yield from columns(_table(examination))
    yield from _limits(examination)
    yield ""
    if examination.languages.counts:
        yield f"languages: {', '.join(f'{name} {share}' for name, share in language_shares(examination))}"
    lengths = examination.tokens.lengths if examination.tokens else examination.lengths
    yield from histogram(lengths)
    if examination.tokens and lengths.values:
        share = examination.tokens.supervised / max(sum(lengths.values), 1)
        yield f"supervised: {share:.1%} of {sum(lengths.values):,} tokens"
    yield verdict(examination)


def counted(count: int, what: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def verdict(examination: Examination) -> str:
    """One line: clean, or how many problems."""
    if examination.unreadable:
        count = len(examination.unreadable)
        return f"{'a source' if count == 1 else f'{count} sources'} could not be read"
    warned = counted(examination.warnings, "warning")
    if examination.errors:
        return f"{counted(examination.errors, 'error')}, {warned}"
    return f"clean{f', {warned}' if examination.warnings else ''}"


def histogram(lengths: Lengths) -> Iterator[str]:
    """Bars for the lengths, and their percentiles."""
    bins = lengths.bins()
    if not bins:
        return
    most = max(count for _, _, count in bins)
    width = len(f"{bins[-1][1]:,}")
    for least, highest, count in bins:
        bar = "█" * round(count / most * _BAR) or ("▏" if count else "")
        yield f"{least:>{width},}–{highest:<{width},} {bar} {count:,}"
    names = {0: "shortest", 50: "median", 100: "longest"}
    told = ", ".join(f"{names.get(share, f'{share}%')} {length:,}" for share, length in lengths.percentiles().items())
    yield f"length in {lengths.unit}: {told}"


def language_shares(examination: Examination) -> list[tuple[str, str]]:
    """Languages with their share of the rows, the most frequent first."""
    counts = examination.languages.counts
    total = sum(counts.values())
    ordered = sorted(counts, key=lambda name: -counts[name])
    return [
        (name, f"{counts[name] / total:.1%}" if counts[name] * 1000 >= total else counted(counts[name], "row"))
        for name in ordered
    ]


def as_dict(examination: Examination) -> dict[str, Any]:
    """The summary as plain JSON values."""
    lengths = examination.tokens.lengths if examination.tokens else examination.lengths
    return {
        "rows": examination.rows,
        "errors": examination.errors,
        "warnings": examination.warnings,
        "unreadable": [str(error) for error in examination.unreadable],
        "sources": [asdict(source) for source in examination.sources],
        "kinds": {
            name: {
                "level": KINDS[name].level,
                "found": tally.found,
                "rows": tally.rows,
                "first": tally.places,
                "advice": KINDS[name].advice,
            }
            for name, tally in ordered_tallies(examination)
        },
        "languages": dict(examination.languages.counts),
        "lengths": {"unit": lengths.unit, "percentiles": lengths.percentiles(), "bins": lengths.bins()},
        "not_compared": {"same": examination.alike.forgotten, "nearly": examination.alike.left_out},
    }


def ordered_tallies(examination: Examination) -> list[tuple[str, Any]]:
    """Kinds that were found, in the order of the table of kinds."""
    return [(name, examination.tallies[name]) for name in KINDS if name in examination.tallies]


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells in columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _table(examination: Examination) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("KIND", "LEVEL", "ROWS", "WHAT", "FIRST LINES")]
    several = len(examination.sources) > 1
    for name, tally in ordered_tallies(examination):
        places = [place if several else place.rpartition(":")[2] for place in tally.places[:_PLACES]]
        more = ", …" if tally.rows > len(places) else ""
        kind = KINDS[name]
        rows.append((name, kind.level, f"{tally.rows:,}", kind.about, ", ".join(places) + more))
    return rows


def _limits(examination: Examination) -> Iterator[str]:
    if examination.alike.left_out:
        yield f"not looked at for near-duplicates, as there are too many: the last {examination.alike.left_out:,} rows"
    if examination.alike.forgotten:
        yield f"not looked at for duplicates, as there are too many: {examination.alike.forgotten:,} rows"
