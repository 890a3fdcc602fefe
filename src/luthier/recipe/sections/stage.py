"""What is learnt: the stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.sections.base import Section


class Pretraining(Section):
    """Next-token prediction over whole documents."""

    type: Literal["pt"] = "pt"


class SupervisedFineTuning(Section):
    """Learn the answers of conversations."""

    type: Literal["sft"] = "sft"


Stage = Annotated[Pretraining | SupervisedFineTuning, Field(discriminator="type")]
