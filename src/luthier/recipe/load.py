"""From a file, a mapping and the command line to one validated `Recipe`.

The order is: read the file, make its paths absolute, lay the overrides (`train.learning_rate=2e-4`) over it, validate. Every
mistake is told in words with its place: `file:line` of the key, also when the value came from the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from luthier.errors import UserError, nearest
from luthier.recipe.document import Dumper, Key, dotted, parse_value, read_document
from luthier.recipe.explain import Places, explain
from luthier.recipe.paths import absolute_paths
from luthier.recipe.schema import Recipe
from luthier.recipe.shipped import shipped_recipes

_SHORT = {
    ("model",): "path",
    ("stage",): "type",
    ("stage", "teacher"): "path",
    ("method",): "type",
    ("train", "optimizer"): "type",
    ("data", "train"): "path",
    ("data", "validation"): "path",
    ("stage", "rewards"): "type",
}
"""Places where a bare name stands for a mapping with this one key."""
_LISTS = {("data", "train"), ("data", "validation"), ("stage", "rewards")}
"""Those of them where one stands for a list of one."""


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file (YAML or JSON), or a shipped recipe by its name, e.g. `tiny/identity`.

    Args:
        path: the file.
        overrides: `key.sub=value`, the value in YAML typing, laid over the file in this order.

    Raises:
        UserError: anything is wrong with the file or an override; one line for each mistake.
    """
    read = read_values(path)
    values = absolute_paths(read.values, read.base)
    given = [Override.parse(text).below(0) for text in overrides]
    for override in given:
        values = lay_over(values, override)
    return validated(values, Places(read.file, read.places.lines, {override.key: override.text for override in given}))


@dataclass(frozen=True)
class Read:
    """A recipe file as it stands.

    Args:
        file: its path.
        values: its content.
        places: the line of each key.
    """

    file: str
    values: dict[str, Any]
    places: Places

    @property
    def base(self) -> Path:
        """The folder that its paths are relative to."""
        return Path(self.file).parent

    @property
    def stem(self) -> str:
        """Its name without folder and ending."""
        return Path(self.file).stem


def read_values(path: Path | str) -> Read:
    """Read a recipe file, or a shipped recipe, without a look at what it means.

    Raises:
        UserError: there is no such file, or it holds no mapping.
    """
    file = Path(path)
    if not file.exists():
        shipped = shipped_recipes()
        if str(path) not in shipped and not file.suffix and (meant := nearest(str(path), shipped)):
            raise UserError("no such file or shipped recipe", where=str(path), hint=f"Did you mean `{meant}`?")
        file = shipped.get(str(path), file)
    document = read_document(file)
    return Read(str(file), document.values, Places(str(file), document.lines))


def recipe_from(mapping: Mapping[str, Any], base: Path) -> Recipe:
    """Validate a recipe given as a mapping, as from Python or the studio; its paths are relative to `base`.

    Raises:
        UserError: one line for each mistake, with its key.
    """
    return validated(absolute_paths(dict(mapping), base), Places())


def apply_overrides(mapping: Mapping[str, Any], overrides: Sequence[str], base: Path | None = None) -> dict[str, Any]:
    """Lay `key.sub=value` over a recipe's mapping; their paths are relative to `base` (default: the working directory).

    A number in a key counts entries of a list: `data.train.0.weight=2`. `method.rank=4` keeps the other settings of `method`,
    `method=full` takes the place of all of them.

    Raises:
        UserError: an override has no `=`, is not YAML, or reaches into something that has no parts.
    """
    values = dict(mapping)
    for text in overrides:
        values = lay_over(values, Override.parse(text).below(0, base))
    return values


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every field written out; reading it back gives the same recipe."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


@dataclass(frozen=True)
class Override:
    """A field that was set on the command line.

    Args:
        key: its place in the recipe.
        value: what it is set to.
        text: as it was typed.
    """

    key: Key
    value: Any
    text: str

    @classmethod
    def parse(cls, text: str) -> Override:
        """Read `key.sub=value`.

        Raises:
            UserError: it has no `=`, or the value is not YAML.
        """
        name, equals, written = text.partition("=")
        parts = name.strip().split(".")
        if not equals or not all(parts):
            meant = f"data.train={text}" if Path(text).exists() else "train.learning_rate=2e-4"
            raise UserError(f"`{text}` is not an override", hint=f"Write `key=value`, e.g. `{meant}`.")
        try:
            value = parse_value(written)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"`{text[:80]}`: the value is not YAML", hint=f"Put it in quotes: `{name}='\"…\"'`.") from error
        return cls(tuple(int(part) if part.isdecimal() else part for part in parts), value, text)

    def below(self, depth: int, base: Path | None = None) -> Override:
        """The same without the first parts of its key, its paths made absolute against `base` (default: the working directory)."""
        key = self.key[depth:]
        return Override(key, absolute_paths(self.value, base or Path.cwd(), key), self.text)


def lay_over(values: dict[str, Any], override: Override) -> dict[str, Any]:
    """A recipe's mapping with an override laid over it.

    Raises:
        UserError: it reaches into something that has no parts.
    """
    result: dict[str, Any] = _lay_over(values, override.key, override.value, override.text)
    return result


def _lay_over(node: Any, key: Key, value: Any, text: str, place: Key = ()) -> Any:
    """A copy of `node`, which stands at `place`, with `value` at `key` below it."""
    if not key:
        return value
    head, rest = key[0], key[1:]
    names = tuple(part for part in place if isinstance(part, str))
    if names in _LISTS and isinstance(node, str | dict) and isinstance(head, int):
        node = [node]
    elif names in _SHORT and isinstance(node, str):
        node = {_SHORT[names]: node}
    if node is None:
        node = {}
    if isinstance(node, list | tuple) and isinstance(head, int):
        if head >= len(node):
            raise UserError(f"`{dotted(place)}` has {len(node)} entries, counted from 0", where=text)
        return [_lay_over(child, rest, value, text, (*place, i)) if i == head else child for i, child in enumerate(node)]
    if isinstance(node, dict):
        head = str(head)
        return {**node, head: _lay_over(node.get(head), rest, value, text, (*place, head))}
    kind = "a list: say which entry, e.g. `data.train.0.weight=2`" if isinstance(node, list | tuple) else f"`{node}`"
    raise UserError(f"`{dotted(place)}` is {kind}, it has no `{head}`", where=text)


def validated(values: dict[str, Any], places: Places) -> Recipe:
    """The recipe that a mapping with absolute paths describes.

    Raises:
        UserError: one line for each mistake, with its place.
    """
    version = values.get("version", 1)
    if isinstance(version, int) and version > 1:
        raise UserError(
            f"is written for recipe version {version}", where=places.where(("version",)), hint="Install a newer Luthier."
        )
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise explain(error, values, places) from None


@contextmanager
def placed(written: Recipe | Path | str | Mapping[str, Any], recipe: Recipe) -> Iterator[None]:
    """Let an error that names a key of the recipe, or the model that a key names, say where in the file the key stands.

    Args:
        written: what the recipe was read from; only a file or a shipped recipe has places.
        recipe: the recipe.
    """
    model = recipe.model
    named = {model.path: "model.path", model.tokenizer: "model.tokenizer", model.adapter: "model.adapter"}
    try:
        yield
    except UserError as error:
        key = named.get(error.where, error.where) if error.where else None
        if (
            key
            and isinstance(written, str | Path)
            and key.split(".")[0] in Recipe.model_fields
            and (place := _locate(written, key))
        ):
            error.where = f"{place}: {error.where}"
        raise


def _locate(path: Path | str, key: str) -> str | None:
    """`file:line` of a dotted key in a recipe file or shipped recipe, or of the nearest part around it; None without a file."""
    file = shipped_recipes().get(str(path), Path(path))
    if not file.is_file():
        return None
    parts = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
    return Places(str(file), read_document(file).lines).where(parts)
