"""One data set of a registry, whichever file it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.errors import UserError
from luthier.recipe.schema import Source

KINDS = ("pretraining", "sft", "preference", "feedback", "prompts")
"""What a data set may be for."""


@dataclass(frozen=True)
class Entry:
    """One data set of a registry.

    Args:
        name: as recipes call it.
        registry: the file that it stands in.
        path: a file, folder, pattern or address; empty for a set on a hub.
        huggingface: its id there.
        modelscope: its id there.
        options: fields of `Source`: format, columns, subset, split, folder, revision, documents, max_examples.
        kind: what it is for.
        languages: of its texts.
        licence: its name, `unknown` where it is not known.
        about: one line.
        checksum: `sha256:…` or `sha1:…` of its file.
        refused: why it cannot be used, empty where it can.
        prompt_only: a column that is text for `stage: pt`; LLaMA-Factory names only the prompt of such sets.
    """

    name: str
    registry: str
    path: str = ""
    huggingface: str = ""
    modelscope: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""
    languages: tuple[str, ...] = ()
    licence: str = "unknown"
    about: str = ""
    checksum: str = ""
    refused: str = ""
    prompt_only: str = ""


def checked_options(options: Mapping[str, Any], where: str) -> None:
    """Refuse options that no source could have.

    Raises:
        UserError: names the first that is wrong.
    """
    from pydantic import ValidationError

    try:
        Source(path="x", **options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}", where=where) from None
