"""What a run of reinforcement takes up again."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.engine.rollout import Rollouts
from luthier.recipe.schema import GRPO


class Nothing:
    """An estimate and a world in one, without a state."""

    main = True

    def state(self) -> dict[str, float]:
        return {}

    def load(self, state: Any) -> None:
        assert state == {}


def rollouts(rewards: str, notes: list[str]) -> Rollouts:
    parts: Any = {"prompts": None, "writer": None, "examined": None, "judge": None, "estimate": Nothing(), "world": Nothing()}
    return Rollouts(stage=GRPO(rewards="exact_match"), seed=1, rewards=rewards, note=notes.append, **parts)


@pytest.mark.parametrize(("now", "told"), [("first", 0), ("changed", 1)])
def test_changed_rewards_are_told(now: str, told: int) -> None:
    notes: list[str] = []
    rollouts(now, notes).load(rollouts("first", notes).cursor(), {})
    assert len(notes) == told
    assert all("rewards have changed" in note for note in notes)
