"""Base and tuned at the same examination: every task is put to one model after the other, and their items are paired.

The models are made when they are needed and let go before the next, so memory holds one at a time. What comes out is plain data
(`Report.as_dict`), from which the table, the JSON and the HTML report are made, so all three tell the same.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.errors import UserError
from luthier.evaluation.examinee import Examinee
from luthier.evaluation.judge import Judged
from luthier.evaluation.statistics import SAMPLES, Compared, Estimate, Measure, compared
from luthier.evaluation.task import Outcome, Progress, Task
from luthier.evaluation.tasks import build
from luthier.recipe.sections.tasks import Examination
from luthier.version import __version__

VERSION = 1
"""Of the layout of `Report.as_dict`."""
Maker = Callable[[], Examinee]


@dataclass(frozen=True)
class Found:
    """A measure of a task.

    Args:
        measure: its name, and how it is told.
        compared: values, intervals, difference.
        groups: the same for parts of the items.
    """

    measure: Measure
    compared: Compared
    groups: Mapping[str, Compared] = field(default_factory=dict)


@dataclass(frozen=True)
class Examined:
    """A task as it went.

    Args:
        settings: of the task.
        found: its measures.
        base, tuned: what happened with either model.
        notes: sentences for people, each with the model that it is of.
        seconds: of each model.
    """

    settings: Examination
    found: Sequence[Found]
    base: Outcome | None
    tuned: Outcome | None
    notes: Sequence[str]
    seconds: Mapping[str, float]

    @property
    def title(self) -> str:
        """What the task is called."""
        return self.settings.title()


@dataclass(frozen=True)
class Report:
    """An examination.

    Args:
        models: `base` and `tuned`, or the one there is, by name.
        tasks: as they went.
        seed: of the intervals.
    """

    models: Mapping[str, str]
    tasks: Sequence[Examined]
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """All of it but the items, as plain data."""
        return {
            "version": VERSION,
            "luthier": __version__,
            "models": dict(self.models),
            "seed": self.seed,
            "samples": SAMPLES,
            "tasks": [_task_dict(task) for task in self.tasks],
        }


def examine(
    makers: Mapping[str, Maker],
    settings: Sequence[Examination],
    *,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Put all tasks to one model or two.

    Args:
        makers: what makes `base` and `tuned`, or the one there is.
        settings: of the tasks.
        seed: of the intervals.
        progress: hears what is being done.

    Raises:
        UserError: a task cannot be done; a judge is asked about one model.
    """
    tasks = [build(each) for each in settings]  # what is missing is told before a model is loaded
    if len(makers) < 2 and (lonely := next((each for each in settings if each.type == "judge"), None)):  # type: ignore[attr-defined]
        raise UserError(
            "a judge compares two models, and there is one", where=lonely.title(), hint="Name a run, or give `--adapter`."
        )
    outcomes: dict[str, list[Outcome]] = {}
    seconds: dict[str, list[float]] = {}
    names: dict[str, str] = {}
    for which, make in makers.items():
        examinee = make()
        names[which] = examinee.name
        outcomes[which], seconds[which] = [], []
        for task in tasks:
            began = time.monotonic()
            outcomes[which].append(task.examine(examinee, _of_model(progress, which)))
            seconds[which].append(time.monotonic() - began)
        del examinee
        gc.collect()  # a model holds itself in circles, and the next one wants its memory
    examined = []
    for place, (each, task) in enumerate(zip(settings, tasks, strict=True)):
        both = {which: outcomes[which][place] for which in makers}
        if isinstance(task, Judged):
            both["base"], both["tuned"] = task.compare(both["base"], both["tuned"], progress)
        examined.append(_examined(each, both, {which: seconds[which][place] for which in makers}, seed))
    return Report(names, examined, seed)


def _of_model(progress: Progress, which: str) -> Progress:
    return lambda what, done, total: progress(f"{which}: {what}", done, total)


def values_of(tasks: Sequence[tuple[Examination, Task]], examinee: Examinee) -> dict[str, tuple[float, bool]]:
    """What a model gets in each task right now: `TASK/MEASURE` → value, and whether a higher one is better."""
    return {
        f"{settings.title()}/{measure.name}": (measure.total, measure.higher)
        for settings, task in tasks
        for measure in task.examine(examinee, lambda what, done, total: None).measures
    }


def _examined(settings: Examination, both: Mapping[str, Outcome], seconds: Mapping[str, float], seed: int) -> Examined:
    base, tuned = both.get("base"), both.get("tuned")
    measures = {which: {measure.name: measure for measure in outcome.measures} for which, outcome in both.items()}
    found = []
    for name in dict.fromkeys(name for named in measures.values() for name in named):
        one, other = measures.get("base", {}).get(name), measures.get("tuned", {}).get(name)
        known = other or one
        assert known is not None
        groups = {group: compared(one, other, seed, chosen) for group, chosen in known.groups.items()}
        found.append(Found(known, compared(one, other, seed), groups))
    notes = dict.fromkeys(f"{which}: {note}" for which, outcome in both.items() for note in outcome.notes)
    return Examined(settings, found, base, tuned, tuple(notes), seconds)


def _task_dict(task: Examined) -> dict[str, Any]:
    outcome = task.tuned or task.base
    assert outcome is not None
    return {
        "name": task.title,
        "settings": task.settings.model_dump(mode="json", exclude_defaults=True) | {"type": task.settings.type},  # type: ignore[attr-defined]
        "about": dict(outcome.about),
        "notes": list(task.notes),
        "seconds": {which: round(taken, 3) for which, taken in task.seconds.items()},
        "measures": [
            {
                "name": one.measure.name,
                "higher_is_better": one.measure.higher,
                **_compared_dict(one.compared),
                **({"groups": {name: _compared_dict(part) for name, part in one.groups.items()}} if one.groups else {}),
            }
            for one in task.found
        ],
    }


def _compared_dict(found: Compared) -> dict[str, Any]:
    estimates = {"base": found.base, "tuned": found.tuned, "difference": found.difference}
    return {"items": found.items} | {name: _estimate_dict(one) for name, one in estimates.items() if one is not None}


def _estimate_dict(found: Estimate) -> dict[str, float | None]:
    return {"value": found.value, "low": found.low, "high": found.high}
