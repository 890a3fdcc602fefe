"""Rewards: what an answer is worth, as numbers that reinforcement stages raise.

One file a reward; each has `build(settings)`, which makes of the recipe's settings a callable from answers to numbers (`base.py`).
`judge_of` makes one judge of all rewards of a stage (`combine.py`). Settings and their help texts are in `luthier.recipe.sections.rewards`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.objectives.rewards.base import Answer, Bad, Reward
from luthier.objectives.rewards.combine import BadValue, Judge, Part, Verdict
from luthier.objectives.rewards.trained import Scorer, TrainedReward
from luthier.recipe.sections.rewards import Code, Http, JsonSchema, MathVerify, OwnCode, Weighted
from luthier.recipe.sections.rewards import Reward as Settings

__all__ = [
    "Answer",
    "Bad",
    "BadValue",
    "Judge",
    "Part",
    "Reward",
    "Scorer",
    "TrainedReward",
    "Verdict",
    "build",
    "digest_of",
    "judge_of",
]

_FILES = {"python": "own_code"}
"""Types whose file is called otherwise."""


def build(settings: Settings) -> Reward:
    """The reward of a recipe's settings.

    Raises:
        UserError: a library is missing, a file cannot be read, an address is not allowed, or the system cannot keep the limits asked for.
    """
    module = importlib.import_module(f"luthier.objectives.rewards.{_FILES.get(settings.type, settings.type)}")
    reward: Reward = module.build(settings)
    return reward


def judge_of(rewards: Sequence[Settings]) -> Judge:
    """One judge of all rewards of a stage.

    Raises:
        UserError: see `build`.
    """
    return Judge(
        [
            Part(each.title(), build(each), each.weight, each.on_bad, waits=isinstance(each, Code | Http | MathVerify))
            for each in rewards
        ]
    )


def digest_of(rewards: Sequence[Weighted]) -> str:
    """What identifies rewards: a hash of their settings and of the files that they name, so that a run that goes on sees a change."""
    from luthier.data.python_source import code_file
    from luthier.data.store_cache import content_digest, key_of

    found: list[Any] = []
    for each in rewards:
        file = code_file(each.python) if isinstance(each, OwnCode) else None
        if isinstance(each, JsonSchema) and each.file:
            file = Path(each.file)
        found.append([each.model_dump(mode="json"), content_digest(file) if file else None])
    return key_of({"rewards": found})
