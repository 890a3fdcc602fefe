"""Checkpoints: ordinary model folders that can also be resumed, and that are whole or absent.

    checkpoints/step-000500/
        adapter_model.safetensors, adapter_config.json      (a PEFT folder; or model.safetensors, config.json: a transformers folder)
        tokenizer.json, …
        resume/state.json                                    counters, the plan, what bitwise equality depends on
        resume/optimizer.safetensors                         moments, step counts, float32 masters
        manifest.json                                        size and sha256 of every file, written last

A checkpoint is built under a temporary name, flushed, and renamed. The manifest is the last file inside: a folder without it, or one
that disagrees with it, is torn and is passed over in favour of the one before. Rotation first renames, then deletes, and never
touches the newest checkpoint nor the best one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier import faults
from luthier.errors import UserError
from luthier.files import is_disk_full, publish, remove_leftovers, sha256, temporary_sibling, write_json

MANIFEST = "manifest.json"
PREFIX = "step-"


@dataclass(frozen=True, slots=True)
class Saved:
    """A verified checkpoint.

    Attributes:
        folder: where it lies.
        step: the step it was taken after.
        state: content of `resume/state.json`.
        tensors: content of `resume/optimizer.safetensors`.
    """

    folder: Path
    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]


class Checkpoints:
    """The `checkpoints` folder of one run.

    Args:
        folder: the folder; made when first needed.
        keep: how many of the last ones rotation leaves.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(
        self, step: int, write_weights: Callable[[Path], None], tensors: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> Path:
        """Write the checkpoint of `step` and return its folder.

        Args:
            step: optimizer steps taken.
            write_weights: writes an ordinary model folder into the given, existing folder.
            tensors: what resume needs besides the weights.
            state: JSON data of the same kind.

        Raises:
            UserError: the disk is full; what was there before is untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"{PREFIX}{step:06d}"
        if final.exists():
            self._discard(final)
        temporary = temporary_sibling(final)
        try:
            (temporary / "resume").mkdir(parents=True)
            write_weights(temporary)
            faults.point("checkpoint.mid-write")
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / "resume" / "optimizer.safetensors"
            )
            write_json(temporary / "resume" / "state.json", dict(state))
            faults.point("checkpoint.before-manifest")
            write_json(temporary / MANIFEST, _manifest(temporary))
            faults.point("checkpoint.before-rename")
            publish(temporary, final)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not is_disk_full(error):
                raise
            raise UserError(
                f"the disk is full; the checkpoint of step {step} was not written, the ones before are intact",
                where=str(self.folder),
                hint="Free some space and resume the run.",
            ) from error
        return final

    def rotate(self, last: int, best: int | None) -> None:
        """Delete all but the `keep` checkpoints up to step `last`, the newest, and the one of step `best`.

        What lies beyond `last` is damaged: a resume has passed over it and will write it anew. It does not count as kept.
        """
        for folder in [folder for folder in self.all() if step_of(folder) <= last][: -self.keep]:
            if step_of(folder) != best:
                self._discard(folder)

    def all(self) -> list[Path]:
        """Checkpoint folders, oldest first, verified or not."""
        return sorted((path for path in self.folder.glob(f"{PREFIX}*") if path.is_dir()), key=step_of)

    def last_good(self, say: Callable[[str], None]) -> Saved | None:
        """The newest checkpoint that agrees with its manifest; `say` hears of those that do not."""
        for folder in reversed(self.all()):
            if fault := find_fault(folder):
                say(f"checkpoint {folder.name} is damaged ({fault}); using the one before")
                continue
            return read(folder)
        return None

    def clean(self) -> None:
        """Remove what a killed writer left behind. The caller holds the run's lock."""
        remove_leftovers(self.folder)

    def _discard(self, folder: Path) -> None:
        """Take a checkpoint out of sight in one rename, then delete it."""
        aside = temporary_sibling(folder)
        folder.rename(aside)
        faults.point("checkpoint.mid-rotation")
        shutil.rmtree(aside)


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(folder.name.removeprefix(PREFIX))


def read(folder: Path) -> Saved:
    """Load the resume part of a checkpoint."""
    return Saved(folder, step_of(folder), read_state(folder), load_file(folder / "resume" / "optimizer.safetensors"))


def read_state(folder: Path) -> dict[str, Any]:
    """Content of a checkpoint's `resume/state.json`."""
    state: dict[str, Any] = json.loads((folder / "resume" / "state.json").read_text(encoding="utf-8"))
    return state


def find_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, in words, or None if every file is as its manifest says."""
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return "it has no manifest"
    except (json.JSONDecodeError, KeyError, TypeError):
        return "its manifest cannot be read"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
            return f"{name} is not what was written"
    return None


def publish_final(checkpoint: Path, final: Path) -> None:
    """Make `final`, a model folder without the resume part, out of a checkpoint.

    Weights are hard links where links are possible. The small files are copies, because people edit them (a template, a generation
    setting), and an edit must not reach the checkpoint.
    """
    temporary = temporary_sibling(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint)
        if path.is_file() and name.parts[0] not in (MANIFEST, "resume"):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(path, temporary / name)
    shutil.rmtree(final, ignore_errors=True)
    publish(temporary, final)


def _link_or_copy(path: Path, target: Path) -> None:
    if path.suffix == ".safetensors":
        try:
            os.link(path, target)
            return
        except OSError:
            pass  # another file system, or one without links
    shutil.copy2(path, target)


def _manifest(folder: Path) -> dict[str, Any]:
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {"version": 1, "files": files}
