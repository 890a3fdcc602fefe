"""The named chat formats: `families.yaml` says what they are, `templates/NAME.jinja` what they write."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import yaml


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
    """

    name: str
    about: str
    source: str
    end_of_turn: str
    stop: tuple[str, ...]
    recognise: tuple[str, ...]


@lru_cache(maxsize=1)
def families() -> dict[str, Family]:
    """All families by name."""
    home = files("luthier.chat")
    described = yaml.safe_load((home / "families.yaml").read_text(encoding="utf-8"))
    return {
        name: Family(
            name=name,
            about=entry["about"],
            source=(home / "templates" / f"{name}.jinja").read_text(encoding="utf-8"),
            end_of_turn=entry["end_of_turn"],
            stop=tuple(entry["stop"]),
            recognise=tuple(entry["recognise"]),
        )
        for name, entry in described.items()
    }


def alike(source: str) -> list[Family]:
    """Families whose signs a foreign template carries, the most telling first."""
    found = [family for family in families().values() if family.recognise and all(sign in source for sign in family.recognise)]
    return sorted(found, key=lambda family: len(family.recognise), reverse=True)
