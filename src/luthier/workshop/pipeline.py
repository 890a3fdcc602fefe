"""Training a recipe of several stages: each is a run of its own, and what one gives is what the next begins with.

    runs/rlhf/
      pipeline.yaml   the stages as resolved
      sft/  rm/  ppo/ ordinary runs
      sft/merged/     the product of a stage whose adapter another stage does not continue

What is done is not done again: a pipeline that was stopped or killed goes on with the stage it was at, and that stage from its last
checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.data.problems import Problems
from luthier.data.read_examples import read_examples
from luthier.data.registry import resolve
from luthier.errors import UserError
from luthier.export.merge import merge
from luthier.files import Locked, lock, write_atomic
from luthier.recipe.pipeline import Part, Pipeline, dump_pipeline, load_pipeline
from luthier.recipe.schema import Recipe, Source
from luthier.runs.folder import PIPELINE, RunFolder, check_name, free_name
from luthier.runs.reader import RunReader
from luthier.workshop.run import Run

LOCK = "lock"
"""Held by the process that trains the stages."""
Start = Callable[[Recipe, bool], None]
"""Trains the run of a recipe to its end; the flag says that the run is there already and is to be carried on."""


def new_pipeline(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), name: str | None = None) -> Pipeline:
    """Read a recipe of several stages, look at the data of all of them, and make the pipeline's folder.

    Raises:
        UserError: a mistake in the recipe, a source of any stage that cannot be read, or a folder of that name is there.
    """
    pipeline = load_pipeline(recipe, overrides, name)
    if not pipeline.named:
        pipeline = load_pipeline(recipe, overrides, free_name(pipeline.folder.parent, pipeline.folder.name))
    folder = pipeline.folder
    check_name(folder.name)
    for part in pipeline.parts:
        _check_sources(part)
    if folder.exists() and not _unstarted(folder):
        hint = f"Carry it on with `luthier resume {folder.name}`, or choose another name with `--name`."
        raise UserError(f"`{folder.name}` is already there", where=str(folder), hint=hint)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_atomic(folder / PIPELINE, dump_pipeline(pipeline))
    return pipeline


def old_pipeline(folder: Path) -> Pipeline:
    """The pipeline of a folder that `new_pipeline` made."""
    return load_pipeline(folder / PIPELINE, name=folder.name, output=folder.parent)


def _unstarted(folder: Path) -> bool:
    """Whether a folder is a pipeline of which nothing is saved and on which nobody works."""
    if not (folder / PIPELINE).is_file() or any(run.checkpoints() for run in map(RunFolder, folder.iterdir())):
        return False
    try:
        with lock(folder / LOCK, wait=False):
            return True
    except Locked:
        return False


def execute(pipeline: Pipeline, start: Start, tell: Callable[[str], None]) -> Run:
    """Train the stages that are not done yet, in their order, and return the run of the last one.

    Args:
        pipeline: the stages.
        start: trains one run.
        tell: hears which stage begins.

    Raises:
        UserError: as `train`, or another process works on the pipeline.
        Stopped: the stage it was at was interrupted; `resume` goes on there.
    """
    try:
        with lock(pipeline.folder / LOCK, wait=False):
            for number, part in enumerate(pipeline.parts, 1):
                folder = RunFolder(pipeline.run(part.name))
                state = RunReader(folder).status().state if folder.is_run() else None
                if state == "done":
                    continue
                tell(f"stage {number} of {len(pipeline.parts)}: {part.name}" + (f", from {part.before}" if part.before else ""))
                if part.merges:
                    _merge(pipeline, part, tell)
                start(part.recipe, bool(folder.checkpoints()))
    except Locked:
        raise UserError(f"`{pipeline.folder.name}` is being trained by another process", where=str(pipeline.folder)) from None
    return Run(RunFolder(pipeline.run(pipeline.parts[-1].name)))


def _merge(pipeline: Pipeline, part: Part, tell: Callable[[str], None]) -> None:
    assert part.before
    out = pipeline.merged(part.before)
    if not out.exists():
        merge(pipeline.run(part.before), out, tell=tell)


def _check_sources(part: Part) -> None:
    """Read the first example of every source, so that a wrong path or format is told before the first stage, not after a night."""
    recipe = part.recipe
    held_out = recipe.data.validation
    extra = held_out if isinstance(held_out, tuple) else (Source(path=held_out),) if isinstance(held_out, str) else ()
    for named in (*recipe.data.train, *extra):
        source = resolve(named, registry=recipe.data.registry, stage=recipe.stage.type)
        next(read_examples(source.model_copy(update={"max_examples": 1}), Problems("skip"), stage=recipe.stage.type), None)
