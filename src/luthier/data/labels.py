"""The labels that a store's texts bring: their names, in a fixed order, each checked against what is to be learnt."""

from __future__ import annotations

import math

from luthier.data.store import TokenStore
from luthier.errors import UserError
from luthier.recipe.schema import Classification

VALUE = "value"
"""What the one number of a regression is called."""


def with_labels(stage: Classification, store: TokenStore) -> Classification:
    """The stage with the names of its labels: its own, else those in the data, numbers by size before words by letters.

    Raises:
        UserError: a text has a label that is not among them, none, several where one is learnt, or a word where it is a number.
    """
    if stage.task == "regression":
        for row in range(len(store)):
            _check_number(store, row)
        return stage.model_copy(update={"labels": stage.labels or (VALUE,)})
    found: dict[str, int] = {}
    for row in range(len(store)):
        names = store.brought(row)["labels"]
        if stage.task == "single" and len(names) != 1:
            what = f"has {len(names)} labels" if names else "has no label"
            raise UserError(
                f"the text {what}", where=store.origin(row), hint="Several labels are learnt with `stage.task: multi`."
            )
        for name in names:
            found.setdefault(name, row)
    strange = next((name for name in found if stage.labels and name not in stage.labels), None)
    if strange is not None:
        raise UserError(f"`{strange}` is none of `stage.labels`", where=store.origin(found[strange]))
    names = stage.labels or tuple(sorted(found, key=_order))
    if len(names) < 2 and stage.task == "single":
        raise UserError(
            "there is nothing to tell apart: one label is not enough" if found else "nothing says what the labels are",
            where="stage.labels",
            hint="Name them all, such as `labels: [good, bad]`.",
        )
    return stage.model_copy(update={"labels": names})


def _check_number(store: TokenStore, row: int) -> None:
    labels = store.brought(row)["labels"]
    try:
        number = float(labels[0]) if len(labels) == 1 else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        said = ", ".join(labels) or "none"
        raise UserError(f"the label should be one number, it is {said}", where=store.origin(row))


def _order(name: str) -> tuple[bool, float, str]:
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name
