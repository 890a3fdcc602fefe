"""A recipe of several stages in other processes: in the background, or each stage on several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from luthier.cli import train_launch
from luthier.files import write_atomic
from luthier.recipe.load import dump_recipe
from luthier.recipe.pipeline import load_pipeline
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder, free_name


def in_background(recipe: str, overrides: Sequence[str], name: str | None, flags: Sequence[str]) -> int:
    """Start all stages in a process of their own; reading the recipe here tells its mistakes before. Returns an exit code."""
    pipeline = load_pipeline(recipe, overrides, name)
    folder = (
        pipeline.folder if pipeline.named else pipeline.folder.with_name(free_name(pipeline.folder.parent, pipeline.folder.name))
    )
    first = RunFolder(folder / pipeline.parts[0].name)
    return train_launch.in_background(["train", recipe, *overrides, "--name", folder.name, *flags], first, folder.parent)


def on_ranks(recipe: str, overrides: Sequence[str], name: str | None, count: int, flags: Sequence[str]) -> None:
    """Train the stages one after the other, each on so many ranks."""
    from luthier.workshop.pipeline import execute, new_pipeline

    execute(new_pipeline(recipe, overrides, name), _Ranks(count, flags), print)


def resumed_on_ranks(folder: Path, count: int, flags: Sequence[str]) -> None:
    """Carry a pipeline on, each stage on so many ranks."""
    from luthier.workshop.pipeline import execute, old_pipeline

    execute(old_pipeline(folder), _Ranks(count, flags), print)


class _Ranks:
    """Trains one stage on several ranks; what ends them ends the command with their exit code."""

    def __init__(self, count: int, flags: Sequence[str]) -> None:
        self._count, self._flags = count, flags

    def __call__(self, recipe: Recipe, going_on: bool) -> None:
        run = RunFolder(Path(recipe.output) / str(recipe.name))
        file = run.path.with_suffix(".yaml")
        write_atomic(file, dump_recipe(recipe))
        what = ["resume", str(run.path)] if going_on else ["train", str(file), "--name", run.name]
        if code := train_launch.on_ranks([*what, *self._flags], self._count, run):
            raise typer.Exit(code)
