"""`evaluate`: from the name of a run or a model to an examination of base and tuned; and the same tasks during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from luthier.errors import UserError, did_you_mean
from luthier.evaluation.examination import Maker, Report, examine, values_of
from luthier.evaluation.examinee import Examinee
from luthier.evaluation.task import Progress
from luthier.evaluation.tasks import build, settings_of
from luthier.generation.chat import ChatModel
from luthier.models.policy import Policy
from luthier.models.source import find_source
from luthier.recipe.schema import Recipe
from luthier.recipe.sections.tasks import Examination
from luthier.workshop.loading import load_chat
from luthier.workshop.run import Run


def evaluate(
    run_or_model: Run | str | Path,
    tasks: Sequence[str | Mapping[str, Any] | Examination],
    *,
    checkpoint: int | None = None,
    adapter: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Examine the tuned model of a run beside the base that it started from, or a model alone.

    Args:
        run_or_model: a run, its name or folder; or a model folder, an adapter folder, a hub id or `tiny`.
        tasks: `TYPE:PATH,option=value`, or mappings with `type`.
        checkpoint: the step whose weights to take instead of the final ones (runs only).
        adapter: a PEFT adapter whose effect is measured on a model (models only).
        limit: most rows of each task that does not say so itself.
        seed: of the intervals.
        progress: hears what is being done.

    Raises:
        UserError: nothing of that name, no task, or a task that cannot be done.
    """
    place = run_or_model.path if isinstance(run_or_model, Run) else run_or_model
    settings = settings_of(tasks, limit=limit)
    if not settings:
        raise UserError(
            "there is no task", where="--tasks", hint="Name one, e.g. `--tasks perplexity:text.txt`, or `--forgetting`."
        )
    return examine(_makers(place, checkpoint, adapter), settings, seed=seed, progress=progress)


def _makers(place: str | Path, checkpoint: int | None, adapter: str | Path | None) -> dict[str, Maker]:
    """What makes base and tuned; a model alone is `base`."""
    source = find_source(place, adapter=adapter, checkpoint=checkpoint)  # a wrong name is told before anything is loaded
    if source.recipe is not None:
        return {"base": partial(_made, place, base=True), "tuned": partial(_made, place, checkpoint=checkpoint)}
    if adapter is not None:
        return {"base": partial(_made, place), "tuned": partial(_made, place, adapter=adapter)}
    if source.adapter is not None:
        return {"base": partial(_made, source.base.path), "tuned": partial(_made, place)}
    return {"base": partial(_made, place)}


def _made(place: str | Path, **which: Any) -> Examinee:
    chat = load_chat(place, **which)
    recipe = find_source(place, **which).recipe
    return Examinee(chat, system=recipe.data.system if recipe else None)


class Tasks:
    """The tasks of a recipe, put to the policy while it is trained.

    Args:
        recipe: names the tasks.
        chat, policy: the model in training.

    Raises:
        UserError: a library is missing, or `evaluate.metric` is none of what is measured.
    """

    def __init__(self, recipe: Recipe, chat: ChatModel, policy: Policy) -> None:
        self._tasks = [(settings, build(settings)) for settings in recipe.evaluate.tasks]
        self._examinee = Examinee(chat, policy, system=recipe.data.system)
        told = [(settings.title(), getattr(task, "measures", None)) for settings, task in self._tasks]
        title, _, measure = recipe.evaluate.metric.partition("/")
        known = dict(told).get(title)
        if measure and known is not None and measure not in known:
            raise UserError(
                f"the task `{title}` does not measure `{measure}`", where="evaluate.metric", hint=did_you_mean(measure, known)
            )

    def __call__(self) -> dict[str, tuple[float, bool]]:
        """`TASK/MEASURE` → its value now, and whether a higher one is better."""
        return values_of(self._tasks, self._examinee)
