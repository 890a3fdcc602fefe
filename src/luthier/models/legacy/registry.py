"""All families of old checkpoints, and which of them a folder belongs to. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path

from luthier.errors import UserError, did_you_mean
from luthier.models.images import refuse_images
from luthier.models.legacy.baichuan import BAICHUAN2_7B, BAICHUAN2_13B, BAICHUAN_7B, BAICHUAN_13B
from luthier.models.legacy.chatglm import CHATGLM
from luthier.models.legacy.deepseek_moe import DEEPSEEK_MOE
from luthier.models.legacy.family import Config, Family
from luthier.models.legacy.internlm import INTERNLM
from luthier.models.legacy.internlm2 import INTERNLM2
from luthier.models.legacy.qwen import QWEN
from luthier.models.legacy.xverse import XVERSE
from luthier.models.legacy.yuan import YUAN

FAMILIES: tuple[Family, ...] = (
    CHATGLM, BAICHUAN_7B, BAICHUAN_13B, BAICHUAN2_7B, BAICHUAN2_13B, INTERNLM, INTERNLM2, QWEN, XVERSE, DEEPSEEK_MOE, YUAN,
)  # fmt: skip
"""Every family that can be converted."""


def by_name(name: str) -> Family:
    """The family of that name.

    Raises:
        UserError: there is none; names the nearest.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    names = [family.name for family in FAMILIES]
    raise UserError(f"no family `{name}` of old checkpoints", hint=did_you_mean(name, names) or f"There are {', '.join(names)}.")


def recognise(config: Config) -> Family | None:
    """The family that a `config.json` is of; None for models that are not old checkpoints."""
    return next((family for family in FAMILIES if family.recognises(config)), None)


def family_of(folder: Path) -> Family | None:
    """The family of a model folder; None where it is another model, an adapter, or nothing.

    Raises:
        UserError: a relative that takes images.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever loads the folder says what is wrong with it
    family = recognise(config) if isinstance(config, dict) else None
    if family is not None:
        refuse_images(config, str(folder))
    return family
