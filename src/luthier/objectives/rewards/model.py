"""What a trained reward model says of an answer: a run of stage `rm`, or any folder of transformers with one label."""

from __future__ import annotations

from luthier.models.scoring import load_reward_model
from luthier.objectives.rewards.trained import TrainedReward
from luthier.recipe.sections.rewards import RewardModel


def build(settings: RewardModel) -> TrainedReward:
    """The reward.

    Raises:
        UserError: nothing of that name, no model that scores texts, or one with several labels.
    """
    return TrainedReward(load_reward_model(settings.path, checkpoint=settings.checkpoint))
