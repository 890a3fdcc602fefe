"""The run folder: the one place that knows what its files are called, and how runs are made and found.

```
runs/first/
  recipe.yaml        the recipe as resolved: every default written out
  status.json        state, process, progress; replaced whole, a few times a minute
  events.jsonl       what happened: starts, saves, notes, the end
  metrics.jsonl      a line a step, and a line an evaluation
  samples.jsonl      answers to the recipe's prompts
  plan.json          how the run is executed: micro-batches, precision, attention path
  environment.json   versions and hardware
  tensorboard/       event files
  log/rank-0.txt     the same story in plain lines
  loss.png           the loss curve, drawn at the end
  evaluations/       what `luthier evaluate` found, a folder each time
  checkpoints/step-000500/   ordinary PEFT or transformers folders with the resume state beside
  final/             what came out
  lock               held by the one process that writes
```
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import files
from luthier.errors import UserError, did_you_mean, nearest

PIPELINE = "pipeline.yaml"
"""In the folder of a recipe of several stages, whose runs lie in it: the stages as resolved."""
OUTPUT = "runs"
"""Where runs lie when the recipe does not say otherwise, relative to the working directory."""

_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The names of everything in one run's folder. Nothing here touches the disk but `checkpoints` and `is_run`."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name: the folder's."""
        return self.path.resolve().name

    @property
    def reference(self) -> str:
        """How a command line names this run: by its name where that is enough (`NAME/STAGE` for that of a stage), else by its folder."""
        path, runs = self.path.resolve(), Path(OUTPUT).resolve()
        near = path.parent == runs or (path.parent.parent == runs and (path.parent / PIPELINE).is_file())
        return str(path.relative_to(runs)) if near else str(self.path)

    @property
    def recipe(self) -> Path:
        """The recipe as resolved, YAML."""
        return self.path / "recipe.yaml"

    @property
    def status(self) -> Path:
        """State, process and progress, JSON."""
        return self.path / "status.json"

    @property
    def events(self) -> Path:
        """What happened, JSON lines."""
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        """Steps and evaluations, JSON lines."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Sample answers, JSON lines."""
        return self.path / "samples.jsonl"

    @property
    def plan(self) -> Path:
        """How the run is executed, JSON."""
        return self.path / "plan.json"

    @property
    def environment(self) -> Path:
        """Versions and hardware, JSON."""
        return self.path / "environment.json"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def plot(self) -> Path:
        """The loss curve."""
        return self.path / "loss.png"

    @property
    def final(self) -> Path:
        """The trained adapter or model."""
        return self.path / "final"

    @property
    def evaluations(self) -> Path:
        """Folder of the reports of `luthier evaluate`."""
        return self.path / "evaluations"

    @property
    def lock(self) -> Path:
        """Lock of the one writer."""
        return self.path / "lock"

    @property
    def checkpoints_folder(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    def log(self, rank: int = 0) -> Path:
        """Plain-text log of one rank."""
        return self.path / "log" / f"rank-{rank}.txt"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after `step`, whether or not it is there."""
        return self.checkpoints_folder / f"step-{step:06d}"

    def checkpoints(self) -> dict[int, Path]:
        """The checkpoints that are there, step → folder, in order; those still being written are left out."""
        if not self.checkpoints_folder.is_dir():
            return {}
        found = ((_STEP.fullmatch(folder.name), folder) for folder in self.checkpoints_folder.iterdir())
        return dict(sorted((int(match[1]), folder) for match, folder in found if match))

    def find_checkpoint(self, step: int) -> Path:
        """Folder of an existing checkpoint.

        Raises:
            UserError: there is none after `step`; the message lists those there are.
        """
        known = self.checkpoints()
        if step in known:
            return known[step]
        steps = ", ".join(map(str, known)) or "none"
        raise UserError(f"run `{self.name}` has no checkpoint {step}", hint=f"It has: {steps}.")

    def is_run(self) -> bool:
        """True if this folder was made by a run."""
        return self.status.is_file()


def check_name(name: str) -> str:
    """`name` if it can name a run's folder.

    Raises:
        UserError: it is empty, begins with a dot, or holds a slash or a control character.
    """
    if not name or name.startswith((".", "-")) or "/" in name or "\\" in name or not name.isprintable():
        raise UserError(
            f"`{name}` cannot name a run", where="name", hint="Use letters, digits, `-`, `_` or `.`, without a slash."
        )
    return name


def free_name(output: str | Path, stem: str) -> str:
    """The first of `stem-1`, `stem-2`, … that is free, or whose run failed before its first step."""
    number = 1
    while (path := Path(output) / f"{stem}-{number}").exists() and not _failed_early(RunFolder(path)):
        number += 1
    return path.name


def create_run(output: str | Path, name: str) -> RunFolder:
    """Make the folder of a new run.

    A run of that name that ended before its first step (a mistake in the data, say) has nothing worth keeping, so its folder is
    emptied and used again.

    Raises:
        UserError: a folder of that name is there; the choice is to resume it or to take another name.
    """
    folder = RunFolder(Path(output) / check_name(name))
    try:
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        folder.path.mkdir()
    except FileExistsError:
        if not _clear_unstarted(folder):
            hint = f"Carry it on with `luthier resume {folder.reference}`, or choose another name with `--name`."
            raise UserError(f"run `{name}` is already there", where=str(folder.path), hint=hint) from None
    except OSError as error:
        raise UserError(f"cannot make the run folder: {error.strerror}", where=str(folder.path)) from error
    folder.log().parent.mkdir(exist_ok=True)
    folder.checkpoints_folder.mkdir(exist_ok=True)
    return folder


def _clear_unstarted(folder: RunFolder) -> bool:
    """Empty the folder of a run that is over and left neither a step nor a checkpoint; False if it is anything else."""
    # Whoever writes a run locks it before its first status, so a status without a lock means that no one is at work.
    if not _never_stepped(folder):
        return False
    try:
        with files.lock(folder.lock, wait=False):
            for entry in folder.path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry != folder.lock:
                    entry.unlink()
    except (OSError, files.Locked):
        return False
    return True


def _never_stepped(folder: RunFolder) -> bool:
    """True for the folder of a run without a step, a checkpoint or a result."""
    if not folder.is_run() or folder.checkpoints() or folder.final.exists():
        return False
    return not folder.metrics.is_file() or folder.metrics.stat().st_size == 0


def _failed_early(folder: RunFolder) -> bool:
    """True for a run that says itself that it ended before its first step."""
    return _never_stepped(folder) and read_status(folder).get("state") in ("failed", "stopped")


def read_status(folder: RunFolder) -> dict[str, Any]:
    """The content of `status.json`.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is not a status file, or was written by a newer Luthier.
    """
    try:
        status = json.loads(folder.status.read_text())
    except ValueError as error:
        raise UserError("not a status file", where=str(folder.status)) from error
    if not isinstance(status, dict):
        raise UserError("not a status file", where=str(folder.status))
    if status.get("version", 1) > STATUS_VERSION:
        raise UserError("this run was made by a newer Luthier", where=str(folder.path), hint="Update luthier to read it.")
    return status


STATUS_VERSION = 1
"""Version of the run folder's files, written into `status.json`."""


def list_runs(output: str | Path = OUTPUT) -> list[RunFolder]:
    """All runs in `output` by name, those of a pipeline's stages in their place."""
    if not Path(output).is_dir():
        return []
    paths = [inner for path in sorted(Path(output).iterdir()) for inner in (_stages(path) or [path])]
    return [folder for path in paths if (folder := RunFolder(path)).is_run()]


def find_pipeline(name_or_path: str | Path, output: str | Path = OUTPUT) -> Path | None:
    """The folder of the pipeline of that name in `output`, or that this path is; None if there is none."""
    candidates = (Path(output) / name_or_path, Path(name_or_path))
    return next((path for path in candidates if (path / PIPELINE).is_file()), None)


def _stages(folder: Path) -> list[Path]:
    """What lies in a pipeline's folder, the oldest first."""
    if not (folder / PIPELINE).is_file():
        return []
    return sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_ctime)


def find_run(name_or_path: str | Path, output: str | Path = OUTPUT) -> RunFolder:
    """The run of that name in `output`, or the run whose folder that is.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    for path in (Path(output) / name_or_path, Path(name_or_path)):
        if (folder := RunFolder(path)).is_run():
            return folder
    names = [str(folder.path.relative_to(output)) for folder in list_runs(output)]
    if not names:
        hint = f"There are no runs in `{output}` yet."
    elif nearest(str(name_or_path), names) or len(names) <= 10:
        hint = did_you_mean(str(name_or_path), names)
    else:
        hint = "`luthier runs list` shows all runs."
    raise UserError(f"there is no run `{name_or_path}`", hint=hint)
