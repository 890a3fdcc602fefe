"""`luthier evaluate`: base and tuned beside each other, in a table, as JSON, and as a report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.errors import UserError
from luthier.runs.lines import duration

if TYPE_CHECKING:
    from luthier.evaluation.task import Progress

INTERVAL = 5.0
"""Seconds between two lines of progress where there is no terminal."""


def evaluate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A run's name, its folder, a model folder, or an adapter folder.")],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK", help="`TYPE:PATH,option=value`, or a YAML file with a list of tasks; give the option again for more."
        ),
    ] = None,
    checkpoint: Annotated[
        int | None, typer.Option(metavar="N", help="The checkpoint of this step instead of the final weights.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An adapter whose effect on a model folder is measured.")
    ] = None,
    forgetting: Annotated[
        bool, typer.Option("--forgetting", help="Also the general set that comes with Luthier: what may have been forgotten.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most N rows of each task, or of each of its subjects.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the confidence intervals.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write evaluation.json, report.html and all items here. Default, for a run: into its folder."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a tuned model beside its base, with confidence intervals; or a model alone."""
    from luthier.workshop.evaluation import evaluate as examined

    wanted = [*(tasks or []), *(["forgetting"] if forgetting else [])]
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("is there already", where=f"--out {out}", hint="Choose another folder.")
    with _progress() as progress:
        report = examined(name, wanted, checkpoint=checkpoint, adapter=adapter, limit=limit, seed=seed, progress=progress)
    from luthier.evaluation.report import table, write_report

    folder = out or _own_folder(name)
    if folder is not None:
        write_report(report, folder)
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False, indent=2))
    else:
        table(report)
    if folder is not None:
        print(f"report: {folder / 'report.html'}", file=sys.stderr)


def _own_folder(name: str) -> Path | None:
    """A new folder in that of a run; None for what is no run."""
    from luthier.models.source import find_source
    from luthier.runs.folder import find_run

    if find_source(name).recipe is None:
        return None
    return find_run(name).evaluations / time.strftime("%Y%m%d-%H%M%S")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar with the time left on a terminal, else a line now and then; both on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        rows: dict[str, Any] = {}

        def moved(what: str, done: int, total: int) -> None:
            if what not in rows:
                for row in rows.values():
                    bar.remove_task(row)
                rows.clear()
                rows[what] = bar.add_task(what, total=total)
            bar.update(rows[what], completed=done, total=total)

        yield moved


class Lines:
    """Progress as lines: the first and the last of each thing, and one every `INTERVAL` seconds with the time that is left."""

    def __init__(self) -> None:
        self.what, self.began, self.told = "", 0.0, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print a line if one is due."""
        now = time.monotonic()
        if what != self.what:
            self.what, self.began, self.told = what, now, now
        if done < total and now - self.told < INTERVAL:
            return
        self.told = now
        left = (now - self.began) / done * (total - done) if done else 0.0
        rest = f", {duration(left)} left" if done < total else ""
        print(f"{what}: {done:,} of {total:,}{rest}", file=sys.stderr)
