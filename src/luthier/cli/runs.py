"""`luthier runs`: list, show, follow and stop runs, from nothing but their folders."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.errors import UserError
from luthier.runs import lines, process
from luthier.runs.folder import OUTPUT, PIPELINE, RunFolder, find_run, list_runs
from luthier.runs.reader import RunReader, Status

INTERVAL = 0.3
"""Seconds between two looks at a run that is followed or stopped."""

runs_app = typer.Typer(help="List, show, follow, stop and resume runs.", no_args_is_help=True, rich_markup_mode=None)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A run's name or its folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@runs_app.command("list")
def list_(
    as_json: AsJson = False, output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of runs.")] = Path(OUTPUT)
) -> None:
    """List all runs with their state and progress."""
    entries = [_entry(folder) for folder in list_runs(output)]
    entries.sort(key=lambda entry: entry.get("started") or 0)
    if as_json:
        print(json.dumps(entries, ensure_ascii=False, indent=2))
    elif not entries:
        print(f"There are no runs in `{output}` yet. Begin with `luthier train tiny/identity`.")
    else:
        header = ("NAME", "STATE", "STEP", "LOSS", "VALIDATION", "STARTED")
        _print_columns([header, *(_row(entry) for entry in entries)])


@runs_app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show one run: state, losses, checkpoints, the last answers."""
    folder = find_run(name)
    reader = RunReader(folder)
    entry, metrics, samples = _entry(folder), reader.metrics(), reader.samples()
    if as_json:
        entry |= {"checkpoints": list(reader.checkpoints()), "last": metrics[-1:], "samples": _last_answers(samples)}
        print(json.dumps(entry, ensure_ascii=False, indent=2))
        return
    print(f"run {entry['name']}: {entry['state']}, step {_of(entry)}, attempt {entry.get('attempt', 1)}")
    if message := entry.get("message"):
        print(f"  {message}")
    losses = [record["loss"] for record in metrics if record.get("loss") is not None]
    if losses:
        print(f"  loss         {losses[0]:.4f} {lines.sparkline(losses, 40)} {losses[-1]:.4f}")
    validation = [record["eval_loss"] for record in metrics if record.get("eval_loss") is not None]
    if validation:
        print(f"  validation   {validation[-1]:.4f}, best {min(validation):.4f} at step {entry.get('best_step', '?')}")
    if entry["state"] == "running" and entry.get("seconds_left") is not None:
        print(f"  time left    {lines.duration(entry['seconds_left'])}")
    print(f"  checkpoints  {', '.join(map(str, reader.checkpoints())) or 'none'}")
    print(f"  folder       {folder.path}")
    for sample in _last_answers(samples):
        print(f"  at step {sample['step']}\n    > {sample['prompt']}\n    {sample['answer']}")
    print(f"  {_with_scores(name, folder) if entry['state'] == 'done' else _next(entry['state'], name)}")


@runs_app.command()
def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing until the run is over.")] = False,
    last: Annotated[int | None, typer.Option("--lines", "-n", metavar="N", min=0, help="Only the last N lines.")] = None,
) -> None:
    """Print what a run has logged."""
    folder = find_run(name)
    reader = RunReader(folder)
    path = folder.log()
    if last is not None and path.is_file():
        text = path.read_bytes()
        skipped = len(b"".join(text.splitlines(keepends=True)[: -last or None]))
    else:
        skipped = 0
    for piece in tail(path, (lambda: reader.status().active) if follow else (lambda: False), skipped):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    if follow and reader.status().state == "lost":
        print(f"The process of this run is gone. Carry it on with: luthier resume {name}", file=sys.stderr)


@runs_app.command()
def stop(name: Name) -> None:
    """Stop a run: it saves a checkpoint first, and can be resumed."""
    folder = find_run(name)
    reader = RunReader(folder)
    status = reader.status()
    if not status.active:
        raise UserError(f"run `{folder.name}` is not running ({status.state})", hint=_next(status.state, name))
    if status.host != process.host():
        raise UserError(f"run `{folder.name}` runs on another machine ({status.host})", hint="Stop it there.")
    try:
        os.kill(status.pid, signal.SIGTERM)  # the process was told apart by its start time just now
    except ProcessLookupError:
        pass
    except PermissionError:
        raise UserError(f"run `{folder.name}` belongs to another user (process {status.pid})") from None
    print(f"run {folder.name} is asked to save and stop …", flush=True)
    while (now := reader.status()).active and (now.pid, now.attempt) == (status.pid, status.attempt):
        time.sleep(INTERVAL)
    print(_stopped(folder, now, name))


def _stopped(folder: RunFolder, status: Status, name: str) -> str:
    if status.state == "done":
        return f"run {folder.name} was done first, at step {status.step}."
    saved = list(folder.checkpoints())
    if not saved:
        return f"run {folder.name} had saved nothing yet; start it again with `luthier train`."
    return f"run {folder.name} is stopped, saved at step {saved[-1]}. {_next(status.state, name)}"


def tail(path: Path, active: Callable[[], bool], offset: int = 0) -> Iterator[bytes]:
    """What is in the file after byte `offset`, and then what is added to it for as long as `active()` holds."""
    while True:
        more = active()  # asked before reading, so that what was written before the end is not missed
        if path.is_file():
            with path.open("rb") as file:
                file.seek(offset)
                piece = file.read()
            offset += len(piece)
            if piece:
                yield piece
        if not more:
            return
        time.sleep(INTERVAL)


def _entry(folder: RunFolder) -> dict[str, Any]:
    """Everything the status says, with the state as it is now. A run that cannot be read is listed as such."""
    try:
        status = RunReader(folder).status()
    except (UserError, KeyError, ValueError) as error:
        return {"name": _title(folder), "folder": str(folder.path), "state": "unreadable", "message": str(error)}
    return status.fields | {"name": _title(folder), "folder": str(folder.path), "state": status.state}


def _title(folder: RunFolder) -> str:
    """The name of a run; of a stage's run with its pipeline's."""
    above = folder.path.resolve().parent
    return f"{above.name}/{folder.name}" if (above / PIPELINE).is_file() else folder.name


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    loss, validation, started = entry.get("loss"), entry.get("eval_loss"), entry.get("started")
    return (
        entry["name"],
        entry["state"],
        _of(entry),
        f"{loss:.4f}" if loss is not None else "",
        f"{validation:.4f}" if validation is not None else "",
        time.strftime("%Y-%m-%d %H:%M", time.localtime(started)) if started else "",
    )


def _of(entry: dict[str, Any]) -> str:
    total = entry.get("total_steps")
    return f"{entry.get('step', 0)}/{total}" if total else str(entry.get("step", 0))


def _next(state: str, name: str) -> str:
    """What one can do with a run in this state."""
    if state in ("preparing", "running"):
        return f"Follow it with `luthier logs {name} -f`."
    if state == "done":
        return f"Talk to it with `luthier chat {name}`."
    return f"Carry it on with `luthier resume {name}`."


def _with_scores(name: str, folder: RunFolder) -> str:
    """What one can do with a finished run, which may be a model that scores texts and writes none."""
    from luthier.recipe.document import read_document

    stage = read_document(folder.recipe).values.get("stage") if folder.recipe.is_file() else None
    kind = stage.get("type") if isinstance(stage, dict) else stage
    if kind == "classify":
        return f"Label texts with `luthier classify {name} FILE`."
    if kind == "rm":
        return f"Judge answers with `rewards: {{type: model, path: {name}}}`, or in Python with `luthier.load`."
    return _next("done", name)


def _last_answers(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of the last step that was sampled."""
    return [sample for sample in samples if sample["step"] == samples[-1]["step"]]


def _print_columns(rows: list[tuple[str, ...]]) -> None:
    """Left-aligned columns; a Chinese character takes two cells."""
    from rich.cells import cell_len

    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
