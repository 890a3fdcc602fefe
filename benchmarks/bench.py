"""Luthier beside its peers on one CPU thread: tokens per CPU-second, losses, memory, and the way to the first step.

    python benchmarks/bench.py                          # everything, hours on two cores
    python benchmarks/bench.py --peer trl --only lora-fp32 --setting best
    python benchmarks/bench.py --quick                  # one pair of three steps, best settings: does it run?

Runs alternate: in each round and kind a peer, Luthier, the next peer, and so on; as many rounds as `--pairs`. A ratio is that of two
runs next to each other in time, and CPU seconds of the training process count: so another process on the machine changes little. A
peer's environment is installed when it is missing. What was measured takes the place of the same cell in `results.json`, from which
`pages.py` makes the tables; each run is also appended to `LOG.md`. A side that cannot be installed or run is a row that says why.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pages
import workload
from measure import Case, Measured, help_seconds, measure
from sides import LUTHIER, PEERS, Side, Unavailable
from table import Comparison, Start, tables

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared/data/llamafactory/alpaca_en_demo.json"
RESULTS, LOG = pages.RESULTS, HERE / "LOG.md"
MODEL = HERE.parent / "build/bench/model"
KINDS = ("lora-fp32", "lora-bf16", "full-fp32", "full-bf16")
SETTINGS = pages.SETTINGS
EXAMPLES, MAX_LENGTH = 8, 512
FEW, MANY = 1_000, 10_000


class Bench:
    """One command: what it measures with, and what it has found.

    Args:
        source: alpaca file.
        steps: optimizer steps, the warm-up included.
        pairs: rounds.
        work: folder for temporary files.
    """

    def __init__(self, source: Path, steps: int, pairs: int, work: Path) -> None:
        self.source, self.pairs, self.work = source, pairs, work
        self.model = workload.make_model(MODEL)
        rows = workload.short_rows(source, steps * EXAMPLES, self.model, MAX_LENGTH)
        self.ours, self.theirs = workload.write_rows(rows, work, "rows")
        self.broken: dict[str, str] = {}

    def prepare(self, side: Side) -> None:
        """Install the side and convert the model for it; remember why when that fails."""
        try:
            command = [str(side.ready() / "python"), str(side.script), "--prepare", str(self.model)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise Unavailable(done.stderr.strip().splitlines()[-1])
        except Unavailable as error:
            self.broken[side.name] = str(error)

    def speeds(self, peers: list[Side], kinds: list[str], settings: list[str]) -> Iterator[list[Comparison]]:
        """Every peer in every kind and setting, in rounds; all that is known after each pair, so that a command cut short loses none."""
        cells = [
            Comparison(*kind.split("-"), peer.title, setting, reason=self.broken.get(peer.name, ""))
            for kind in kinds
            for peer in peers
            for setting in settings
            if setting in peer.settings
        ]
        for _ in range(self.pairs):
            for kind in kinds:
                wanted = [n for n, cell in enumerate(cells) if f"{cell.method}-{cell.precision}" == kind and not cell.reason]
                for place in range(0, len(wanted), 2):
                    for index, pair in self._neighbours(cells, wanted[place : place + 2]):
                        cells[index] = pair
                        yield cells

    def _neighbours(self, cells: list[Comparison], places: list[int]) -> Iterator[tuple[int, Comparison]]:
        """One more pair for one or two cells of the same kind: a peer, Luthier, the other peer; so each peer has run next to Luthier."""
        before, *after = (cells[place] for place in places)
        first = self._peer(before)
        ours = measure(LUTHIER, Case(before.method, before.precision, "best", self.ours), self.model, self.work)
        yield places[0], self._one_more(before, ours, first)
        for place, cell in zip(places[1:], after, strict=True):
            yield place, self._one_more(cell, ours, self._peer(cell))

    def _peer(self, cell: Comparison) -> Measured | str:
        """A run of the cell's peer, or the reason why there is none."""
        peer = next(side for side in PEERS.values() if side.title == cell.peer)
        try:
            return measure(peer, Case(cell.method, cell.precision, cell.setting, self.theirs), self.model, self.work)
        except Unavailable as error:
            return str(error)

    def _one_more(self, cell: Comparison, ours: Measured, theirs: Measured | str) -> Comparison:
        """The cell with one more pair, or with the reason why there is none."""
        if isinstance(theirs, str):
            return replace(cell, reason=theirs)
        more = replace(cell, pairs=(*cell.pairs, (ours, theirs)))
        say(f"{cell.method} {cell.precision} {cell.peer} {cell.setting}: {ours.speed:.0f} / {theirs.speed:.0f} = {more.ratio}")
        return more

    def starts(self, sides: list[Side]) -> Iterator[Start]:
        """How each side begins, with medians over the rounds."""
        few = workload.write_rows(workload.many_rows(self.source, FEW), self.work, "few")
        many = workload.write_rows(workload.many_rows(self.source, MANY), self.work, "many")
        runs: dict[str, list[tuple[Measured, Measured]]] = {side.name: [] for side in sides}
        for _ in range(self.pairs):
            for side in sides:
                if side.name not in self.broken:
                    self._start(side, few, many, runs[side.name])
        for side in sides:
            yield self._begin(side, runs[side.name])

    def _start(self, side: Side, few: tuple[Path, Path], many: tuple[Path, Path], runs: list[tuple[Measured, Measured]]) -> None:
        column = 0 if side is LUTHIER else 1
        case = Case("lora", "fp32", "best", few[column], only_start=True)
        try:
            short = measure(side, case, self.model, self.work)
            long = measure(side, replace(case, data=many[column]), self.model, self.work)
        except Unavailable as error:
            self.broken[side.name] = str(error)
        else:
            runs.append((short, long))
            say(f"start {side.title}: {short.begin['cpu']:.1f} CPU-s, with {MANY:,} rows {long.begin['cpu']:.1f}")

    def _begin(self, side: Side, runs: list[tuple[Measured, Measured]]) -> Start:
        try:
            if side.name in self.broken:
                raise Unavailable(self.broken[side.name])
            spent = help_seconds(side, self.work)
        except Unavailable as error:
            return Start(side.title, reason=str(error))
        short, long = zip(*runs, strict=True)
        begin = statistics.median(run.begin["cpu"] for run in short)
        return Start(
            side.title,
            begin=begin,
            first=statistics.median(run.steps[0]["cpu"] for run in short),
            wall=statistics.median(run.steps[0]["wall"] for run in short),
            rows=(MANY - FEW) / (statistics.median(run.begin["cpu"] for run in long) - begin),
            help=spent,
        )


def say(line: str) -> None:
    print(line, flush=True)


def keep(comparisons: list[Comparison], starts: list[Start]) -> None:
    """Put the new numbers in the place of the old ones, and write the pages anew from all of them."""
    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"speed": [], "start": []}
    speed = {cell.key: cell for cell in (*map(Comparison.of, stored["speed"]), *comparisons)}
    start = {one.side: one for one in (*(Start(**values) for values in stored["start"]), *starts)}
    order = [(*kind.split("-"), side.title, setting) for kind in KINDS for side in PEERS.values() for setting in SETTINGS]
    cells = [speed[key] for key in order if key in speed]
    begun = [start[side.title] for side in (LUTHIER, *PEERS.values()) if side.title in start]
    text = json.dumps({"speed": [cell.to_json() for cell in cells], "start": [vars(one) for one in begun]}, indent=1)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    pages.write()


def log(comparisons: list[Comparison], starts: list[Start], load: float) -> None:
    """Append what this command has measured to the log."""
    command = shlex.join(["python", "benchmarks/bench.py", *sys.argv[1:]])
    head = f"## {datetime.date.today()} · Luthier beside its peers"
    machine = f"{processor()}, {os.cpu_count()} cores, load {load:.1f} at the start, one thread for each run."
    with LOG.open("a", encoding="utf-8") as page:
        page.write(f"\n{head}\n\n    {command}\n\n{machine}\n\n{tables(comparisons, starts)}\n")


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--only", nargs="+", choices=(*KINDS, "start"), default=[*KINDS, "start"], help="what to measure")
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--pairs", type=int, default=5, help="rounds")
    parser.add_argument("--data", type=Path, default=DATA, help="alpaca file")
    parser.add_argument("--quick", action="store_true", help="one round of three steps, best settings; nothing is written")
    return parser.parse_args()


def main() -> None:
    chosen, load = arguments(), os.getloadavg()[0]
    if not chosen.data.is_file():
        sys.exit(f"error: no such file: {chosen.data}; give an alpaca file with --data")
    peers = [PEERS[name] for name in chosen.peer]
    kinds = [kind for kind in chosen.only if kind != "start"]
    pairs, steps, settings = (1, 3, ["best"]) if chosen.quick else (chosen.pairs, 5, chosen.setting)
    comparisons: list[Comparison] = []
    starts: list[Start] = []
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(chosen.data, steps, pairs, Path(name))
        for side in peers:
            bench.prepare(side)
        for comparisons in bench.speeds(peers, kinds, settings):
            if not chosen.quick:
                keep([cell for cell in comparisons if cell.pairs or cell.reason], [])
        if "start" in chosen.only:
            starts = list(bench.starts([LUTHIER, *peers]))
    say(tables(comparisons, starts))
    if not chosen.quick:
        keep(comparisons, starts)
        log(comparisons, starts, load)


if __name__ == "__main__":
    main()
