"""What is learnt: the stages."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from luthier.recipe.sections.stages.likelihood import Pretraining, SupervisedFineTuning
from luthier.recipe.sections.stages.preference import DPO, ORPO

Stage = Annotated[Pretraining | SupervisedFineTuning | DPO | ORPO, Field(discriminator="type")]
