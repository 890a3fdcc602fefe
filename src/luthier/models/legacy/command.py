"""Conversion into a folder that the user names: what `luthier models convert` does."""

from __future__ import annotations

from pathlib import Path

from luthier.errors import UserError
from luthier.models.hub import fetch, find
from luthier.models.legacy.cache import write_native, write_original
from luthier.models.legacy.registry import FAMILIES, by_name, family_of


def convert_folder(source: str, out: Path, *, original_names: bool = False, family: str | None = None) -> None:
    """Write the native form of an old checkpoint, or a converted model as the checkpoint that it comes from.

    Args:
        source: folder or hub id; with `original_names` a converted model, or one trained from it.
        out: must not exist yet, or be empty.
        original_names: from native to original.
        family: what the checkpoint is; default: what its config says.

    Raises:
        UserError: `out` holds something, the source is of no family, broken, or there is no room.
    """
    if out.exists():
        if not out.is_dir() or any(out.iterdir()):
            raise UserError("already there, and not empty", where=str(out), hint="Give another folder.")
        out.rmdir()
    if original_names:
        write_original(fetch(source), out.absolute())
        return
    folder = find(source)
    found = by_name(family) if family else family_of(folder)
    if found is None:
        names = ", ".join(family.name for family in FAMILIES)
        raise UserError(
            "not an old checkpoint that is known",
            where=str(folder),
            hint=f"Known are {names}; name one with `--family` if it is one.",
        )
    write_native(folder, found, out.absolute())
    _for_transformers(out)


def _for_transformers(out: Path) -> None:
    """Add a `tokenizer.json`, which plain AutoTokenizer reads, where one gives the very same ids."""
    from luthier.data.tokenizer import load_tokenizer
    from luthier.data.tokenizer_files import vocabulary

    if vocabulary(out) is not None:
        load_tokenizer(out).save(out)
