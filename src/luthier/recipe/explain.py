"""What pydantic found wrong with a recipe, in words: one line for each mistake, with the place of the key in the file.

pydantic reports a union once for each of its members and puts the member's name into the location (`method.lora.rank`). Here the
location is led back to the keys that the user wrote, and what is said about one key becomes one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from luthier.errors import UserError, did_you_mean, nearest
from luthier.recipe.document import Key, dotted
from luthier.recipe.help import fields, section_at


@dataclass(frozen=True)
class Places:
    """Where the values of a recipe came from.

    Args:
        file: the recipe file, or None for a recipe that was given as a mapping.
        lines: line of each key in the file.
        overrides: the text of the override that set a key.
    """

    file: str | None = None
    lines: Mapping[Key, int] = field(default_factory=dict)
    overrides: Mapping[Key, str] = field(default_factory=dict)

    def where(self, key: Key) -> str | None:
        """`file:line` of the key or of the nearest part around it that the file has."""
        if self.file is None:
            return None
        line = next((self.lines[part] for part in _around(key) if part in self.lines), None)
        return f"{self.file}:{line}" if line else self.file

    def override(self, key: Key) -> str | None:
        """The override that set the key, as it was typed."""
        return next((self.overrides[part] for part in _around(key) if part in self.overrides), None)


def _around(key: Key) -> list[Key]:
    """The key, then what contains it, from the inside out."""
    return [key[:length] for length in range(len(key), 0, -1)]


def explain(error: ValidationError, values: dict[str, Any], places: Places) -> UserError:
    """All mistakes of a recipe as one `UserError`; more than one stand on a line each."""
    found: dict[Key, list[Any]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_written_key(detail["loc"], values, detail["type"]), []).append(detail)
    inner = {part for key in found for part in _around(key)[1:]}
    mistakes = [
        _sentence(key, details, values, places)
        for key, details in found.items()
        if not (len(details) > 1 and key in inner)  # the other members of a union, of which one member's part is at fault
    ]
    if len(mistakes) == 1:
        return mistakes[0]
    return UserError("\n".join(str(mistake) for mistake in mistakes))


def _written_key(location: Sequence[str | int], values: Any, kind: str) -> Key:
    """The key as the user wrote it: the location without the names of union members."""
    key: Key = ()
    node = values
    for i, part in enumerate(location):
        inside = part in node if isinstance(node, Mapping) else isinstance(node, list | tuple) and isinstance(part, int)
        if inside:
            key, node = (*key, part), node[part]
        elif kind == "missing" and i == len(location) - 1:
            key = (*key, part)
    return key


def _sentence(key: Key, details: list[Any], values: Any, places: Places) -> UserError:
    first = details[0]
    kind, context = first["type"], first.get("ctx", {})
    typed = places.override(key)
    subject = f"`{typed}`" if typed else f"`{dotted(key)}`" if key else "the recipe"
    where, hint = places.where(key), None
    if kind == "extra_forbidden":
        return UserError(f"{_in(typed)}unknown key `{dotted(key)}`", where=where, hint=_suggest(key, _tag_at(key[:-1], values)))
    if kind == "missing":
        return UserError(f"`{dotted(key)}` is missing", where=where, hint="It has no default.")
    if kind == "value_error":
        said = str(context["error"])
        named = re.search(r"`([a-z_.]+)`", said)
        return UserError(said, where=places.where(key or tuple(named[1].split(".")) if named else key))
    if kind == "union_tag_invalid":
        known = re.findall(r"'([^']*)'", context["expected_tags"])
        return UserError(f"{_in(typed)}unknown {dotted(key)} `{context['tag']}`", where=where, hint=_known(context["tag"], known))
    if kind == "invalid_key":
        return UserError(f"{subject} has a key that is not text", where=where, hint="Put it in quotes.")
    wanted = list(dict.fromkeys(_wanted(detail) for detail in details))
    value = first["input"]
    if isinstance(value, str) and (options := [o for d in details if d["type"] == "literal_error" for o in _options(d)]):
        best = nearest(value, options)
        hint = f"Did you mean `{best}`?" if best else None
    return UserError(f"{subject} should be {' or '.join(wanted)}{_got(value)}", where=where, hint=hint)


def _tag_at(key: Key, values: Any) -> Any:
    """The `type` written in the part of the recipe at `key`, if any."""
    for part in key:
        values = values[part]
    return values.get("type") if isinstance(values, Mapping) else None


def _in(typed: str | None) -> str:
    return f"`{typed}`: " if typed else ""


def _got(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", not a mapping"
    if isinstance(value, list | tuple):
        return ", not a list"
    if value is None:
        return ", not empty"
    if isinstance(value, bool):
        return f", not {str(value).lower()}"
    return f", not `{str(value)[:60]}`"


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "finite": "a finite number",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping (`key: value`)",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _wanted(detail: Any) -> str:
    """What the value should have been, as the end of "… should be"."""
    kind = detail["type"]
    if kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        return f"{word} {detail['ctx'][name]:g}"
    if kind == "literal_error":
        options = [f"`{option}`" for option in _options(detail)]
        return options[0] if len(options) == 1 else "one of " + ", ".join(options)
    return _WORDS.get(kind.split("_")[0], f"valid ({detail['msg']})")


def _options(detail: Any) -> list[str]:
    expected: str = detail["ctx"]["expected"]
    return [quoted or number for quoted, number in re.findall(r"'([^']*)'|(\d+)", expected)]


def _known(word: Any, known: list[str]) -> str:
    """The nearest of the known names and the list of all."""
    best = nearest(str(word), known)
    return f"{f'Did you mean `{best}`? ' if best else ''}Known: {', '.join(known)}."


def _suggest(key: Key, tag: Any) -> str:
    """What an unknown key most likely meant: a neighbour, the same word elsewhere, or one of all neighbours."""
    parent, word = key[:-1], str(key[-1])
    section = section_at(parent, tag)
    neighbours = list(section.model_fields) if section else []
    if best := nearest(word, neighbours):
        return f"Did you mean `{dotted((*parent, best))}`?"
    for known in fields():
        if known.key.rpartition(".")[2] == word:
            same = known.key == dotted(key)
            return f"`{word}` belongs to `{known.only}`." if same else f"Did you mean `{known.key}`?"
    return did_you_mean(word, neighbours) if neighbours else "Remove it."
