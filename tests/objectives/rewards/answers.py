"""Short ways to make answers and rewards for the tests."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from luthier.objectives.rewards import Answer, Bad, build
from luthier.recipe.sections.rewards import Rewards

READ: TypeAdapter[Any] = TypeAdapter(Rewards)


def settings(*written: Any) -> Any:
    """Rewards as a recipe writes them, validated."""
    return READ.validate_python(list(written))


def answer(text: str, reference: str | None = None, **more: Any) -> Answer:
    return Answer(({"role": "user", "content": "?"},), text, reference, origin=more.pop("origin", "data.jsonl:1"), **more)


def value(written: Any, text: str, reference: str | None = None, **more: Any) -> Any:
    """What a reward gives one answer; of a bad value its reason."""
    (only,) = build(settings(written)[0])([answer(text, reference, **more)])
    return only.why if isinstance(only, Bad) else only
