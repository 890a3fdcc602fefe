"""From the settings of tasks to tasks, and from what was typed to settings."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from luthier.errors import UserError, did_you_mean
from luthier.evaluation.task import Task
from luthier.recipe.sections.tasks import AllTasks, Examination, task_path, written_out

_FILES = {
    "mmlu": "choice",
    "ceval": "choice",
    "cmmlu": "choice",
    "arc": "choice",
    "piqa": "choice",
    "lm_eval": "harness",
    "forgetting": "general",
}
"""Types whose module is called otherwise."""
_ADAPTER: TypeAdapter[tuple[Examination, ...]] = TypeAdapter(AllTasks)
TYPES = (
    "perplexity",
    "generate",
    "choice",
    "mmlu",
    "ceval",
    "cmmlu",
    "arc",
    "piqa",
    "bbh",
    "gsm8k",
    "lm_eval",
    "forgetting",
    "judge",
)
"""All types of tasks."""


def build(settings: Examination) -> Task:
    """The task of these settings.

    Raises:
        UserError: a library is missing, or an address is not allowed.
    """
    kind = str(getattr(settings, "type", ""))
    module = importlib.import_module(f"luthier.evaluation.{_FILES.get(kind, kind)}")
    task: Task = module.build(settings)
    return task


def settings_of(texts: Sequence[str | Mapping[str, Any] | Examination], *, limit: int | None = None) -> tuple[Examination, ...]:
    """The settings of tasks as they were typed: `TYPE:PATH,option=value`, or a YAML file with a list of tasks.

    Args:
        texts: what was typed, or tasks as mappings or settings; paths are relative to the working directory, those in a file to its folder.
        limit: most rows of each task that does not say so itself.

    Raises:
        UserError: there is no such task, or an option of it is wrong.
    """
    given: list[Any] = []
    for text in texts:
        if not isinstance(text, str):
            given.append(text.model_dump() if isinstance(text, Examination) else dict(text))
            continue
        file = Path(text)
        if file.suffix in (".yaml", ".yml") and ":" not in text:
            given += _listed(file)
        else:
            given.append(_written(text))
    for task in given:
        if limit is not None and isinstance(task, dict):
            task["limit"] = task.get("limit") or limit
    try:
        return _ADAPTER.validate_python(given)
    except ValidationError as error:
        raise _mistake(error, given) from None


def _listed(file: Path) -> list[Any]:
    try:
        found = yaml.safe_load(file.read_text("utf-8"))
    except OSError:
        raise UserError("no such file", where=str(file)) from None
    except yaml.YAMLError as error:
        raise UserError(f"it is not YAML: {str(error).splitlines()[0]}", where=str(file)) from None
    if not isinstance(found, list):
        raise UserError("it should be a list of tasks", where=str(file))
    tasks = []
    for entry in found:
        task = _written(task_path(entry, file.parent)) if isinstance(entry, str) else entry
        if isinstance(task, dict):
            for name in ("path", "examples", "python"):
                if isinstance(task.get(name), str) and task[name]:
                    task[name] = str(file.parent.absolute() / Path(task[name]).expanduser())
        tasks.append(task)
    return tasks


def _written(text: str) -> Any:
    try:
        task = written_out(text)
    except ValueError as error:
        raise UserError(str(error), where=text) from None
    kind = task["type"]
    if kind not in TYPES:
        hint = did_you_mean(kind, TYPES)
        raise UserError(
            f"there is no task `{kind}`", where=text, hint=f"{hint} A task is `TYPE:PATH`, e.g. `perplexity:text.txt`."
        )
    return task


def _mistake(error: ValidationError, given: Sequence[Any]) -> UserError:
    """The first mistake in words, with its task."""
    first = error.errors(include_url=False)[0]
    place = first["loc"]
    task = given[place[0]] if place and isinstance(place[0], int) else {}
    where = str(task.get("name") or task.get("type")) if isinstance(task, dict) else str(task)
    option = str(place[-1]) if len(place) > 2 else ""
    if first["type"] == "extra_forbidden":
        known = _fields(where, task)
        return UserError(f"a task of type `{task['type']}` has no `{option}`", where=where, hint=did_you_mean(option, known))
    if first["type"] == "missing":
        return UserError(f"`{option}` is missing", where=where, hint=f"Write it as `{where}:PATH` or `{where}:…,{option}=…`.")
    said = first["msg"].removeprefix("Value error, ")
    return UserError(f"{said[0].lower()}{said[1:]}", where=f"{where}: {option}" if option else where or "--tasks")


def _fields(_: str, task: Any) -> list[str]:
    """The options of a task's type."""
    from luthier.recipe.help import section_at

    section = section_at(("evaluate", "tasks"), task["type"])
    return sorted(section.model_fields) if section else []
