"""What is learnt: the stages."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from luthier.recipe.sections.stages.distillation import Distillation
from luthier.recipe.sections.stages.feedback import BCO, KTO
from luthier.recipe.sections.stages.likelihood import Pretraining, SupervisedFineTuning
from luthier.recipe.sections.stages.preference import CPO, DPO, ORPO, SimPO
from luthier.recipe.sections.stages.reinforcement import GRPO, PPO, OnlineDPO
from luthier.recipe.sections.stages.scoring import Classification, RewardModelling

Stage = Annotated[
    Pretraining
    | SupervisedFineTuning
    | DPO
    | ORPO
    | SimPO
    | CPO
    | KTO
    | BCO
    | RewardModelling
    | Classification
    | GRPO
    | PPO
    | OnlineDPO
    | Distillation,
    Field(discriminator="type"),
]
