"""A run as Python sees it: a handle on its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.recipe.load import load_recipe
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder, find_run
from luthier.runs.reader import RunReader, Status


@dataclass(frozen=True)
class Run:
    """One execution of a recipe.

    Attributes:
        folder: names every file of the run.
    """

    folder: RunFolder

    @classmethod
    def find(cls, name_or_path: str | Path) -> Run:
        """The run of that name under `./runs`, or in that folder.

        Raises:
            UserError: there is none; the message names the nearest.
        """
        return cls(find_run(name_or_path))

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    @property
    def recipe(self) -> Recipe:
        """The recipe as it was resolved."""
        return load_recipe(self.folder.recipe)

    @property
    def status(self) -> Status:
        """State (`running`, `done`, …) and progress."""
        return RunReader(self.folder).status()

    def metrics(self) -> list[dict[str, Any]]:
        """A mapping for every step (`step`, `loss`, `learning_rate`, …) and every evaluation (`eval_loss`, …), in order."""
        return list(RunReader(self.folder).metrics())

    def samples(self) -> list[dict[str, Any]]:
        """The sample answers: `step`, `prompt`, `answer`."""
        return list(RunReader(self.folder).samples())
