"""Plain text: one document a row, `{"text": …}`, for pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Document, Origin
from luthier.data.formats.fields import text_of
from luthier.data.problems import RowError

NAME = "text"
COLUMNS = ("text",)


def matches(row: Any) -> bool:
    """Whether the row has `text`."""
    return isinstance(row, dict) and "text" in row


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> Document:
    """One row as a document.

    Raises:
        RowError: no text.
    """
    text = text_of(row, "text", columns, required=True)
    if not text.strip():
        raise RowError(f"`{columns.get('text', 'text')}` is empty")
    return Document(text, origin)
