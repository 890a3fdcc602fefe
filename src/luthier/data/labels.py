"""The labels that texts bring: their names in a fixed order, and the numbers that a model is to say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from luthier.data.store import TokenStore
from luthier.errors import UserError
from luthier.recipe.schema import Classification

LABELS = "labels"
"""What a text brings."""
VALUE = "value"
"""What the one number of a regression is called."""


def with_labels(stage: Classification, store: TokenStore) -> Classification:
    """The stage with the names of its labels: its own, else those in the data, numbers by size before words by letters.

    Raises:
        UserError: a text brings something else than the stage learns, or there is nothing to tell apart.
    """
    names = stage.labels or ((VALUE,) if stage.task == "regression" else _names(store))
    settled = stage.model_copy(update={"labels": names})
    target = target_of(settled)
    for row in range(len(store)):
        try:
            target(store.brought(row))
        except ValueError as error:
            raise UserError(str(error), where=store.origin(row)) from error
    if len(names) < 2 and stage.task == "single":
        raise UserError(
            "one label is not enough: there is nothing to tell apart",
            where="stage.labels",
            hint="Name them all, such as `labels: [good, bad]`.",
        )
    return settled


def target_of(stage: Classification) -> Callable[[Mapping[str, Any]], Any]:
    """What makes the target of a text from what it brought: the number of a class, one number for each label, or a number.

    It raises a `ValueError`, in words, for what the stage does not learn. The stage names its labels.
    """
    place = {name: number for number, name in enumerate(stage.labels)}

    def target(brought: Mapping[str, Any]) -> Any:
        names = brought[LABELS]
        if stage.task != "multi" and len(names) != 1:
            raise ValueError(f"the text has {len(names)} labels, and `stage.task: {stage.task}` learns one")
        if stage.task == "regression":
            return _number(names[0])
        if strange := [name for name in names if name not in place]:
            raise ValueError(f"`{strange[0]}` is none of `stage.labels`")
        return place[names[0]] if stage.task == "single" else [float(name in names) for name in stage.labels]

    return target


def _names(store: TokenStore) -> tuple[str, ...]:
    return tuple(sorted({name for row in range(len(store)) for name in store.brought(row)[LABELS]}, key=_order))


def _number(label: str) -> float:
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"the label should be one number, it is `{label}`")
    return value


def _order(name: str) -> tuple[bool, float, str]:
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name
