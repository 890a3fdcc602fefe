"""Which places of a recipe are paths, and what they are relative to.

An input path in a recipe is relative to the recipe's own folder, so that a recipe and its data can be moved together; one that
was typed on the command line is relative to the working directory, as for every other command. `output` is left alone: runs go
where one works. A model may also be `tiny` or a hub id, so a name becomes a path only if it looks like one or is such a folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from luthier.recipe.document import Key

_FILES = {("data", "train"), ("data", "train", "path"), ("data", "validation"), ("data", "validation", "path")}
_FOLDERS = {("model",), ("model", "path"), ("model", "tokenizer"), ("model", "adapter")}
_TEMPLATE = ("data", "template")


def absolute_paths(value: Any, base: Path, key: Key = ()) -> Any:
    """A copy of `value`, which stands at `key` of a recipe, with its input paths made absolute against `base`."""
    if isinstance(value, dict):
        return {name: absolute_paths(child, base, (*key, name)) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [absolute_paths(child, base, key) for child in value]
    if not isinstance(value, str) or not value:
        return value
    names = tuple(part for part in key if isinstance(part, str))
    if names in _FILES or (names == _TEMPLATE and value.endswith(".jinja")):
        return _absolute(value, base)
    if names in _FOLDERS and value != "tiny" and _is_folder(value, base):
        return _absolute(value, base)
    return value


def _absolute(value: str, base: Path) -> str:
    return os.path.normpath(base.absolute() / Path(value).expanduser())


def _is_folder(value: str, base: Path) -> bool:
    """Whether a model is named by a path: it is written as one, or the folder is there."""
    return value.startswith(("/", "./", "../", "~")) or value in (".", "..") or (base / value).is_dir()
