"""From `results.json` to the pages that show it: every number in `benchmarks/README.md`, a short table in both READMEs of the project.

    python benchmarks/pages.py

`make bench` does the same after each pair of runs. A test holds the pages to what `results.json` says, so that no number on them is
written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from table import Comparison, Start, put_between, table, tables

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
SETTINGS = ("best", "default")
MEMORY = ("lora", "fp32")
"""The work whose peak memory stands in the short table."""


@dataclass(frozen=True)
class Words:
    """What a page says around the numbers.

    Attributes:
        nothing: in place of a table that has no numbers yet.
        speed: name of a row of speeds, with the work.
        memory, start: names of the other rows.
    """

    nothing: str
    speed: str
    memory: str
    start: str


ENGLISH = Words(
    nothing="Not measured yet; `make bench` fills this in.",
    speed="{}, tokens per CPU-second",
    memory="peak memory, LoRA in fp32, MiB",
    start="CPU-seconds to the start of step 1, 1,000 rows",
)
CHINESE = Words(
    nothing="还没有测；`make bench` 会填上。",
    speed="{}，每 CPU 秒的词元数",
    memory="内存峰值（LoRA，fp32），MiB",
    start="到第 1 步开始用的 CPU 秒数（1,000 行）",
)
WORK = {"lora": "LoRA", "full": "full"}


def pages(results: Path = RESULTS) -> dict[Path, str]:
    """Every page with numbers, and what belongs between its markers."""
    stored = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {"speed": [], "start": []}
    comparisons, starts = [Comparison.of(cell) for cell in stored["speed"]], [Start(**one) for one in stored["start"]]
    return {
        HERE / "README.md": tables(comparisons, starts) or ENGLISH.nothing,
        HERE.parent / "README.md": short(comparisons, starts, ENGLISH),
        HERE.parent / "README.zh.md": short(comparisons, starts, CHINESE),
    }


def write() -> None:
    """Bring all pages up to date."""
    for page, text in pages().items():
        page.write_text(put_between(page.read_text(encoding="utf-8"), text), encoding="utf-8")


def short(comparisons: Sequence[Comparison], starts: Sequence[Start], words: Words) -> str:
    """A row for each kind of work, a column for each side; a peer's cell is the ratio at its best, then at its defaults."""
    measured = [cell for cell in comparisons if cell.pairs]
    if not measured:
        return words.nothing
    peers = list(dict.fromkeys(cell.peer for cell in comparisons))
    works = dict.fromkeys((cell.method, cell.precision) for cell in measured)
    rows = [_speeds([cell for cell in measured if (cell.method, cell.precision) == work], peers, words) for work in works]
    memory = [cell for cell in measured if (cell.method, cell.precision, cell.setting) == (*MEMORY, "best")]
    if memory:
        rows.append(_memory(memory, peers, words))
    begun = {one.side: f"{one.begin:.1f}" for one in starts if not one.reason}
    if begun:
        rows.append([words.start, *(begun.get(side, "–") for side in ("Luthier", *peers))])
    return table(["", "Luthier", *peers], rows)


def _speeds(cells: Sequence[Comparison], peers: Iterable[str], words: Words) -> list[str]:
    ours = median(run.speed for cell in cells for run, _ in cell.pairs)
    ratios = {(cell.peer, cell.setting): f"{cell.ratio.middle:.2f}×" for cell in cells}
    theirs = [" / ".join(ratios[peer, setting] for setting in SETTINGS if (peer, setting) in ratios) for peer in peers]
    return [words.speed.format(f"{WORK[cells[0].method]} {cells[0].precision}"), f"{ours:.0f}", *(cell or "–" for cell in theirs)]


def _memory(cells: Sequence[Comparison], peers: Iterable[str], words: Words) -> list[str]:
    ours = median(run.peak for cell in cells for run, _ in cell.pairs)
    theirs = {cell.peer: f"{median(run.peak for _, run in cell.pairs):,.0f}" for cell in cells}
    return [words.memory, f"{ours:,.0f}", *(theirs.get(peer, "–") for peer in peers)]


if __name__ == "__main__":
    write()
