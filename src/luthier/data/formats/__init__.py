"""Formats: what the rows of a file mean. One file a format, each a module with the four names of `Format`.

The format is set in the recipe or told from the keys of the first rows; a file has one format. A row that does not keep to it is a
problem with its line, never a guess. Placeholders such as `{{name}}` are left as they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from luthier.data.examples import Conversation, Document, Example, Origin
from luthier.data.formats import alpaca, messages, sharegpt, text
from luthier.data.formats.fields import kind
from luthier.data.problems import Problems, RowError, RowProblem
from luthier.data.read import read_rows
from luthier.data.textfile import shown
from luthier.errors import UserError, did_you_mean
from luthier.recipe.schema import Source

_LOOKED_AT = 100
_MEDIA = ("images", "videos", "audios")


class Format(Protocol):
    """What a format's module holds."""

    NAME: str
    """The name in the recipe."""
    COLUMNS: tuple[str, ...]
    """Canonical names of its columns, which `source.columns` may rename."""
    matches: Callable[[Any], bool]
    """Whether a row, its columns canonically named, has the keys of this format."""
    parse: Callable[[Any, Origin, Mapping[str, str]], Conversation | Document]
    """A row as an example; raises `RowError` when it is not what the format promises."""


FORMATS: dict[str, Format] = {module.NAME: module for module in (messages, sharegpt, alpaca, text)}
"""Every format by name, in the order in which they are tried."""


def read_examples(source: Source, problems: Problems, *, stage: str, system: str | None = None) -> Iterator[Example]:
    """Yield the examples of a source: a `Document` for stage `pt`, a `Conversation` for `sft`.

    Args:
        source: file, format and columns; at most `max_examples` are read.
        problems: takes every bad row.
        stage: `pt` or `sft`.
        system: system prompt for conversations that bring none.

    Raises:
        UserError: the file cannot be read at all, its format cannot be told, or does not fit the stage.
    """
    rows = read_rows(Path(source.path))
    if source.format == "auto":
        chosen, rows = _detect(rows, source, stage)
    else:
        chosen = FORMATS[source.format]
    _check_stage(chosen, source, stage)
    _check_columns(chosen, source)
    count = 0
    for origin, row in rows:
        try:
            example = _parse(chosen, row, origin, source.columns)
        except RowError as error:
            problems.add(origin, str(error), fatal=isinstance(row, RowProblem) and row.fatal)
            continue
        yield _with_system(example, system) if system else example
        count += 1
        if count == source.max_examples:
            return


def _parse(chosen: Format, row: Any, origin: Origin, columns: Mapping[str, str]) -> Example:
    if isinstance(row, RowProblem):
        raise RowError(row.message)
    if isinstance(row, dict):
        for name in _MEDIA:
            if row.get(name):
                raise RowError(f"has `{name}`; only text is read")
    elif chosen is not FORMATS["messages"] or not isinstance(row, list):
        raise RowError(f"the row is {kind(row)}, it should be a mapping")
    return chosen.parse(row, origin, columns)


def _with_system(example: Example, system: str) -> Example:
    if not isinstance(example, Conversation) or example.messages[0]["role"] == "system":
        return example
    return Conversation(({"role": "system", "content": system}, *example.messages), example.origin, example.tools)


def _detect(rows: Iterator[tuple[Origin, Any]], source: Source, stage: str) -> tuple[Format, Iterator[tuple[Origin, Any]]]:
    """The format that fits the first row that fits any; the rows that were looked at are given back in front of the others."""
    seen: list[tuple[Origin, Any]] = []
    own = {name: canonical for canonical, name in source.columns.items()}
    candidates = [FORMATS["text"], *FORMATS.values()] if stage == "pt" else list(FORMATS.values())
    for origin, row in rows:
        seen.append((origin, row))
        named = {own.get(key, key): value for key, value in row.items()} if isinstance(row, dict) else row
        for candidate in candidates:
            if candidate.matches(named):
                return candidate, chain(seen, rows)
        if len(seen) == _LOOKED_AT:
            break
    if problem := next(((origin, row) for origin, row in seen if isinstance(row, RowProblem)), None):
        raise UserError(problem[1].message, where=str(problem[0]))
    origin, row = seen[0]
    having = (
        f"the keys {', '.join(f'`{str(key)[:40]}`' for key in list(row)[:8])}" if isinstance(row, dict) and row else kind(row)
    )
    hint = "Set `format`, or name the columns: `columns: {instruction: question, output: answer}`."
    raise UserError(f"cannot tell the format of the rows from {having}", where=str(origin), hint=hint)


def _check_stage(chosen: Format, source: Source, stage: str) -> None:
    documents = chosen is FORMATS["text"]
    if documents and stage != "pt":
        what = f"plain text has no answers to learn in stage `{stage}`"
        raise UserError(what, where=shown(Path(source.path)), hint="Use `stage: pt`, or data with questions and answers.")
    if stage == "pt" and not documents:
        hint = "Use `stage: sft`, or name the column to read: `columns: {text: output}`."
        raise UserError(
            f"holds `{chosen.NAME}` conversations, but stage `pt` reads text", where=shown(Path(source.path)), hint=hint
        )


def _check_columns(chosen: Format, source: Source) -> None:
    for name in source.columns:
        if name not in chosen.COLUMNS:
            hint = did_you_mean(name, chosen.COLUMNS)
            raise UserError(f"`columns`: format `{chosen.NAME}` has no `{name}`", where=shown(Path(source.path)), hint=hint)


__all__ = ["FORMATS", "Conversation", "Document", "Format", "read_examples"]
