"""Texts with labels, for classifiers: `{"text": …, "label": …}`.

    {"text": "What a film!", "label": "good"}        one class
    {"text": "What a film!", "label": ["good", "short"]}     several, or none: `[]`
    {"text": "What a film!", "label": 4.5}           a number, for regression

The label may be called `labels`. A list may be written as JSON in a string, as csv files have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Example, Labelled, Origin
from luthier.data.formats.fields import kind, structure_of, text_of
from luthier.data.formats.written import no_place
from luthier.data.problems import RowError

NAME = "classification"
ABOUT = "Texts with a label, several labels or a number, for classifiers"
COLUMNS = ("text", "label")
MAKES = (Labelled,)


def matches(row: Any) -> bool:
    """Whether the row has a text and a label."""
    return isinstance(row, dict) and "text" in row and ("label" in row or "labels" in row)


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a labelled text.

    Raises:
        RowError: the text is missing or empty, or the label is missing or something else than names and numbers.
    """
    text = text_of(row, "text", columns, required=True)
    if not text.strip():
        raise RowError(f"`{columns.get('text', 'text')}` is empty")
    column = columns.get("label") or next((name for name in ("label", "labels") if name in row), "label")
    value = row.get(column)
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = structure_of(value, f"`{column}`")
    several = value if isinstance(value, list | tuple) else [value]
    return [Labelled(text, origin, tuple(_name(each, column) for each in several))]


def write(example: Example) -> dict[str, Any]:
    """A labelled text as a row.

    Raises:
        RowError: it has no label.
    """
    if not isinstance(example, Labelled):
        no_place(example, NAME)
    labels: Any = list(example.labels)
    return {"text": example.text, "label": labels[0] if len(labels) == 1 else labels}


def _name(value: Any, column: str) -> str:
    """A label as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise RowError(f"`{column}` is {kind(value) if value else 'empty'}, it should be a label, a number, or a list of them")
