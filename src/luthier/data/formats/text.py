"""Plain text: one document a row, `{"text": …}`, for pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Document, Example, Origin
from luthier.data.formats.fields import text_of
from luthier.data.formats.written import no_place
from luthier.data.problems import RowError

NAME = "text"
ABOUT = "Plain text: one document a row, or a text file"
COLUMNS = ("text",)
MAKES = (Document,)


def matches(row: Any) -> bool:
    """Whether the row has `text`."""
    return isinstance(row, dict) and "text" in row


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a document.

    Raises:
        RowError: no text.
    """
    text = text_of(row, "text", columns, required=True)
    if not text.strip():
        raise RowError(f"`{columns.get('text', 'text')}` is empty")
    return [Document(text, origin)]


def write(example: Example) -> dict[str, Any]:
    """A document as a row.

    Raises:
        RowError: it is no document.
    """
    if isinstance(example, Document):
        return {"text": example.text}
    no_place(example, NAME)
