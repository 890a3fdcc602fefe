"""Which places of a recipe are paths, and what they are relative to.

An input path in a recipe is relative to the recipe's own folder, so that a recipe and its data can be moved together; one that
was typed on the command line is relative to the working directory, as for every other command. `output` is left alone: runs go
where one works. A model may also be `tiny` or a hub id, so a name becomes a path only if it looks like one or is such a folder. Data
may also lie at an address (`s3://…`) or on a hub: `owner/name` without an ending is left as it is unless it is there as a file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from luthier.recipe.document import Key
from luthier.recipe.sections.tasks import task_path

_FILES = {(*place, *rest) for place in (("data", "train"), ("data", "validation")) for rest in ((), ("path",), ("python",))}
_FILES |= {("data", "registry"), ("stage", "rewards", "python"), ("stage", "rewards", "file")}
_FILES |= {("evaluate", "tasks", name) for name in ("path", "examples", "python")}
_TASKS = ("evaluate", "tasks")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://.*", re.DOTALL)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_ENDING = re.compile(r"\.(json|jsonl|ndjson|csv|tsv|parquet|txt|gz|zst|py|yaml|md)", re.IGNORECASE)
_FOLDERS = {("model",), ("model", "path"), ("model", "tokenizer"), ("model", "adapter"), ("stage", "rewards", "path")}
_FOLDERS |= {("stage", "teacher"), ("stage", "teacher", "path"), ("stage", "teacher", "adapter")}
_TEMPLATE = ("data", "template")


def absolute_paths(value: Any, base: Path, key: Key = ()) -> Any:
    """A copy of `value`, which stands at `key` of a recipe, with its input paths made absolute against `base`."""
    if isinstance(value, dict) and value.get("hub", "auto") != "auto":
        return {name: child if name == "path" else absolute_paths(child, base, (*key, name)) for name, child in value.items()}
    if isinstance(value, dict):
        return {name: absolute_paths(child, base, (*key, name)) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [absolute_paths(child, base, key) for child in value]
    if not isinstance(value, str) or not value:
        return value
    names = tuple(part for part in key if isinstance(part, str))
    names = names[1:] if names[:1] == ("stages",) else names  # a stage of a pipeline is a recipe of its own
    if names in _FILES and (is_address(value) or (is_hub_id(value) and not (base / value).exists())):
        return value
    if names == _TASKS:
        return task_path(value, base)
    if names in _FILES or (names == _TEMPLATE and value.endswith(".jinja")):
        return _absolute(value, base)
    if names in _FOLDERS and value != "tiny" and _is_folder(value, base):
        return _absolute(value, base)
    return value


def is_address(path: str) -> bool:
    """Whether a path is an address such as `s3://bucket/file.jsonl`."""
    return _ADDRESS.fullmatch(path) is not None


def is_hub_id(path: str) -> bool:
    """Whether a path is written as a hub id is: `owner/name`, and not as a file."""
    return _HUB_ID.fullmatch(path) is not None and _ENDING.fullmatch(Path(path).suffix) is None


def _absolute(value: str, base: Path) -> str:
    return os.path.normpath(base.absolute() / Path(value).expanduser())


def _is_folder(value: str, base: Path) -> bool:
    """Whether a model is named by a path: it is written as one, or the folder is there."""
    return value.startswith(("/", "./", "../", "~")) or value in (".", "..") or (base / value).is_dir()
