"""What a trained reward model says of an answer: a run of stage `rm`, or any folder of transformers with one label."""

from __future__ import annotations

from luthier.errors import UserError
from luthier.models.scoring import load_scorer
from luthier.objectives.rewards.trained import TrainedReward
from luthier.recipe.sections.rewards import RewardModel


def build(settings: RewardModel) -> TrainedReward:
    """The reward.

    Raises:
        UserError: nothing of that name, no model that scores texts, or one with several labels.
    """
    model = load_scorer(settings.path, checkpoint=settings.checkpoint)
    if model.scorer.labels != 1:
        raise UserError(
            f"this model has {model.scorer.labels} labels, a reward is one number",
            where=settings.path,
            hint="Name a reward model.",
        )
    return TrainedReward(model)
