"""What the data commands have in common: naming data, formats, columns and texts on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from luthier.recipe.schema import Source

As = Annotated[str, typer.Option("--as", metavar="FORMAT", help="How rows are read. Default: as their keys tell.")]
Columns = Annotated[
    list[str] | None, typer.Option(metavar="NAME=COLUMN", help="Own column names, e.g. instruction=question. May be repeated.")
]


def source_named(text: str, format_name: str = "auto", columns: dict[str, str] | None = None) -> Source:
    """What a word on the command line names: a file, folder, pattern, address or hub id, else a data set in a registry."""
    from luthier.data.parts import has_data_suffix
    from luthier.recipe.schema import Source

    options: dict[str, Any] = {"columns": columns} if columns else {}
    options |= {"format": format_name} if format_name != "auto" else {}
    bare = "/" not in text and not has_data_suffix(text) and not Path(text).exists()
    if bare:
        from luthier.data.registry import entries

        if text in entries():
            return Source.model_validate({"name": text, **options})
    return Source.model_validate({"path": text, **options})


def column_names(pairs: list[str] | None) -> dict[str, str]:
    """`--columns a=b` as a mapping.

    Raises:
        UserError: one of them has no `=`, or nothing on one side of it.
    """
    found = texts_of(pairs, "--columns", "instruction=question")
    if "" in found.values():
        raise UserError("names no column", where="--columns", hint="Write it as --columns instruction=question.")
    return found


def texts_of(pairs: list[str] | None, flag: str, example: str = "name=text") -> dict[str, str]:
    """`name=text` as a mapping; the text may be empty and may hold `=`.

    Raises:
        UserError: one of them has no `=`, or nothing before it.
    """
    found: dict[str, str] = {}
    for pair in pairs or []:
        name, sign, text = pair.partition("=")
        if not (name and sign):
            raise UserError(f"cannot be read: `{pair}`", where=flag, hint=f"Write it as {flag} {example}.")
        found[name] = text
    return found


def check_format(name: str, flag: str) -> str:
    """The name, if it is that of a format.

    Raises:
        UserError: it is not.
    """
    from luthier.data.formats import FORMATS

    if name != "auto" and name not in FORMATS:
        raise UserError(f"there is no format `{name}`", where=flag, hint=did_you_mean(name, FORMATS))
    return name
