"""The recipes that come with Luthier: `recipes/` of the checkout, or the copy of it inside the installed package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from luthier.errors import UserError, did_you_mean
from luthier.recipe.document import Key, read_document
from luthier.recipe.paths import absolute_paths

PACKAGE = Path(__file__).resolve().parent.parent


def shipped_folder() -> Path | None:
    """The folder of shipped recipes: in the wheel, else in the checkout that this package is installed from."""
    checkout = PACKAGE.parent.parent
    candidates = [PACKAGE / "recipes"]
    if (checkout / "pyproject.toml").is_file():
        candidates.append(checkout / "recipes")
    return next((folder for folder in candidates if folder.is_dir()), None)


def shipped_recipes() -> dict[str, Path]:
    """Shipped recipes by name: the path below the folder, without `.yaml`, e.g. `tiny/identity`.

    YAML files that name no model, such as the one that drives a tokenizer's training, are not recipes of runs.
    """
    folder = shipped_folder()
    if folder is None:
        return {}
    files = (path for path in sorted(folder.rglob("*.yaml")) if re.search(r"^model:", path.read_text("utf-8"), re.MULTILINE))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def find_shipped(name: str) -> Path:
    """The file of a shipped recipe.

    Raises:
        UserError: there is none of this name; the hint has the nearest.
    """
    recipes = shipped_recipes()
    wanted = name.removeprefix("recipes/").removesuffix(".yaml")
    if wanted not in recipes:
        raise UserError(f"no shipped recipe `{name}`", hint=did_you_mean(wanted, recipes) if recipes else None)
    return recipes[wanted]


def first_comment(path: Path) -> list[str]:
    """The comment that opens a recipe (the command, what it needs, what it gives), one entry a line, without `#`."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return lines


def summary(path: Path) -> str:
    """What a recipe is for: the first text of its opening comment below the command."""
    return next((line for line in first_comment(path)[1:] if line), "")


def copy_shipped(name: str, file: Path) -> Path:
    """Write a shipped recipe to `file` (or into that folder) with its comments; relative paths become absolute.

    Raises:
        UserError: unknown name, the file exists, or its folder does not.
    """
    source = find_shipped(name)
    target = file / source.name if file.is_dir() else file
    if target.exists():
        raise UserError("exists already", where=str(target), hint="Name a file that is not there yet.")
    if not target.parent.is_dir():
        raise UserError("no such folder", where=str(target.parent))
    document = read_document(source)
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    for key, old, new in _changed(document.values, absolute_paths(document.values, source.parent)):
        line = next(document.lines[key[:length]] for length in range(len(key), 0, -1) if key[:length] in document.lines) - 1
        lines[line] = lines[line].replace(old, new, 1)
    target.write_text("".join(lines), encoding="utf-8")
    return target


def _changed(old: Any, new: Any, key: Key = ()) -> list[tuple[Key, str, str]]:
    """The strings that differ between two trees of one shape, with their places."""
    if isinstance(old, dict):
        return [change for name in old for change in _changed(old[name], new[name], (*key, name))]
    if isinstance(old, list):
        return [change for i in range(len(old)) for change in _changed(old[i], new[i], (*key, i))]
    return [(key, old, new)] if old != new else []
