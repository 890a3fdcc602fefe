"""The named chat formats: `families.yaml` says what they are, `templates/NAME.jinja` what they write.

Formats of one kind share parts (`templates/parts`), named by `{% include 'part' %}`. Parts are put in as text when a family is read,
so a family's source is one template that stands alone: it travels with the trained model as `chat_template.jinja`. The default system
message of `families.yaml` becomes its first line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal

import yaml

ROLES = ("system", "user", "assistant", "tool")

_INCLUDE = re.compile(r"\{% include '([\w-]+)' %\}\n")


@dataclass(frozen=True, slots=True)
class Family:
    """A chat format that Luthier ships.

    Args:
        name: as in `data.template`.
        about: one line for people.
        source: its Jinja template.
        end_of_turn: what the model writes when it is done; `{eos}` stands for the tokenizer's own token.
        stop: texts that end a generation.
        recognise: a foreign template that holds all of these may be of this family.
        roles: roles of messages that it takes.
        tools: how it calls functions: a name in `chat.tools.FORMATS`; None if it takes none.
        thinking: `dropped`: it writes thoughts, but not those of earlier answers; `none`: it writes them only when asked to.
        system: the system message of conversations that bring none.
        aliases: other names for it.
        rewrites: an earlier question may look different once a later one follows it (the system message moves along, say).
    """

    name: str
    about: str
    source: str
    end_of_turn: str
    stop: tuple[str, ...]
    recognise: tuple[str, ...]
    roles: tuple[str, ...] = ROLES
    tools: str | None = None
    thinking: Literal["none", "dropped"] = "none"
    system: str = ""
    aliases: tuple[str, ...] = ()
    rewrites: bool = False


@lru_cache(maxsize=1)
def families() -> dict[str, Family]:
    """All families by name."""
    home = files("luthier.chat")
    described = yaml.safe_load((home / "families.yaml").read_text(encoding="utf-8"))
    return {name: _family(home / "templates", name, entry) for name, entry in described.items()}


@lru_cache(maxsize=1)
def by_any_name() -> dict[str, Family]:
    """All families by their names and aliases."""
    return {name: family for family in families().values() for name in (family.name, *family.aliases)}


def alike(source: str) -> list[Family]:
    """Families whose signs a foreign template carries, the most telling first."""
    found = [family for family in families().values() if family.recognise and all(sign in source for sign in family.recognise)]
    return sorted(found, key=lambda family: len(family.recognise), reverse=True)


def _family(home: Traversable, name: str, entry: dict[str, Any]) -> Family:
    listed: dict[str, Any] = {"recognise": (), **entry}
    listed = {key: tuple(value) if isinstance(value, list) else value for key, value in listed.items()}
    return Family(name=name, source=_source(home, name, entry.get("system", "")), **listed)


def _source(home: Traversable, name: str, system: str) -> str:
    """The template with its parts put in, and with its default system message where it asks for one."""
    body = (home / f"{name}.jinja").read_text(encoding="utf-8")
    body = _INCLUDE.sub(lambda part: (home / "parts" / f"{part[1]}.jinja").read_text(encoding="utf-8"), body)
    if not system:
        return body
    title, rest = body.split("\n", 1)
    return f"{title}\n{{%- set default_system = {json.dumps(system, ensure_ascii=False)} %}}\n{rest}"
