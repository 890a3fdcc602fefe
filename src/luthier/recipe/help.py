"""The help of every field of a recipe, taken from the schema: written once there, shown by the command line and the docs."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from luthier.recipe.document import Key
from luthier.recipe.schema import Recipe, Section, Train


@dataclass(frozen=True)
class Field:
    """One field of the recipe.

    Args:
        key: dotted key, e.g. `train.learning_rate`; the members of `data.train` stand below `data.train`.
        type: its type in words, e.g. `whole number`, `auto | full | selective`.
        default: the default as it would stand in YAML, or None when the field is required.
        text: what it does.
        only: the member of a union it belongs to (`lora` for `method.rank`), or None.
    """

    key: str
    type: str
    default: str | None
    text: str
    only: str | None = None


@cache
def fields() -> tuple[Field, ...]:
    """Every field of the recipe in the order of the schema, sections before their parts."""
    return tuple(dict.fromkeys(_walk(Recipe, (), None)))  # several stages may have the same part


def fields_of(section: type[Section], key: Key, only: str | None = None) -> tuple[Field, ...]:
    """The fields of one section, as if it stood at `key`."""
    return tuple(dict.fromkeys(_walk(section, key, only)))


def section_at(key: Key, tag: Any = None) -> type[Section] | None:
    """The section whose fields may stand directly below `key`, if there is one; positions in lists are skipped.

    Args:
        key: a place in a recipe.
        tag: the `type` there, which chooses among the members of a union. Default: the type that is taken when none is given.
    """
    members: list[type[Section]] = [Recipe]
    usual: str | None = None
    for part in key:
        if isinstance(part, int):
            continue
        around = [section.model_fields[part] for section in members if part in section.model_fields]
        members = list(dict.fromkeys(member for info in around for member in _sections_in(info.annotation)))
        usual = getattr(around[0].default, "type", None) if around else None
    wanted = tag or usual
    return next((member for member in members if _tag(member) == wanted), members[0] if members else None)


def _tag(section: type[Section]) -> str | None:
    """What a member of a union is called: the one value that its `type` can have."""
    values = get_args(section.model_fields["type"].annotation) if "type" in section.model_fields else ()
    return str(values[0]) if len(values) == 1 else None


def _walk(section: type[Section], key: Key, only: str | None) -> Iterator[Field]:
    for name, info in section.model_fields.items():
        place = (*key, name)
        if name == "type" and only is not None:
            continue
        yield Field(".".join(map(str, place)), words(info.annotation), _default(info), info.description or "", only)
        for member in _sections_in(info.annotation):
            yield from _walk(member, place, _tag(member) or only)


def _sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a type mentions, in order, each once."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, Section) else []
    if get_origin(annotation) is Literal:
        return []
    return list(dict.fromkeys(found for part in get_args(annotation) for found in _sections_in(part)))


_SIMPLE = {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "empty"}


def words(annotation: Any) -> str:
    """A type in words: `whole number | auto`, `list of text`, `mapping`."""
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words(parts[0])
    if origin is Literal:
        return " | ".join(str(part) for part in parts)
    if origin in (Union, types.UnionType):
        tags = [_tag(section) for section in _sections_in(annotation)]
        if len(tags) == len(parts) and all(tags):
            return " | ".join(map(str, tags))
        return " | ".join(dict.fromkeys(words(part) for part in parts if part is not type(None)))
    if origin is tuple:
        inner = words(parts[0])
        return f"list of ({inner})" if "|" in inner else f"list of {inner}"
    return "mapping"


def _default(info: FieldInfo) -> str | None:
    if info.is_required():
        return None
    value = info.get_default(call_default_factory=True)
    if isinstance(value, Section):
        tag = getattr(value, "type", None)
        return str(tag) if tag else "{}"
    if isinstance(value, tuple):
        value = list(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def json_schema() -> dict[str, Any]:
    """The recipe's JSON schema, short forms included (`stage: sft`, `model: tiny`, `train: data.json`), for editors and forms."""
    schema = Recipe.model_json_schema()
    parts, text = schema["properties"], {"type": "string"}
    for name in ("stage", "method"):
        known = [_tag(member) for member in _sections_in(Recipe.model_fields[name].annotation)]
        parts[name] = _or(parts[name], {"enum": known})
    train = schema["$defs"]["Train"]["properties"]
    train["optimizer"] = _or(
        train["optimizer"], {"enum": [_tag(rule) for rule in _sections_in(Train.model_fields["optimizer"].annotation)]}
    )
    parts["model"] = _or(parts["model"], text)
    data = schema["$defs"]["Data"]["properties"]
    sources = {"anyOf": [text, {"$ref": "#/$defs/Source"}]}
    data["train"] = _or({**data["train"], "items": sources}, *sources["anyOf"])
    for part in schema["$defs"].values():
        if rewards := part.get("properties", {}).get("rewards"):
            short: list[dict[str, Any]] = [
                {"enum": sorted(rewards["items"]["discriminator"]["mapping"])},
                {"required": ["python"], "type": "object"},
            ]
            several = {**rewards, "items": _or(rewards["items"], *short)}
            part["properties"]["rewards"] = _or(several, rewards["items"], *short)
    _with_stages(schema)
    return schema


def _with_stages(schema: dict[str, Any]) -> None:
    """Let a recipe list stages, of which each may bring what the recipe itself leaves out."""
    text = {"type": "string"}
    own = {"name": {**text, "description": "Name of the stage and of its run."}}
    own["from"] = {**text, "description": "The stage whose product it starts with; `base` for the recipe's model."}
    entry = {"type": "object", "properties": {**schema["properties"], **own}, "additionalProperties": False}
    about = "Stages that feed each other, each a recipe laid over this one."
    schema["properties"]["stages"] = {"type": "array", "items": entry, "minItems": 1, "description": about}
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["stages"]}]
    schema["$defs"]["Data"].pop("required")


def _or(schema: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    """A schema that also takes the others; its own remarks stay outside."""
    remarks: dict[str, Any] = {key: schema[key] for key in ("default", "description", "title") if key in schema}
    return {"anyOf": [{key: value for key, value in schema.items() if key not in remarks}, *others], **remarks}
