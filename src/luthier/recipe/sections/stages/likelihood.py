"""Stages that learn to write what the data holds."""

from __future__ import annotations

from typing import Literal

from luthier.recipe.sections.base import Section


class Pretraining(Section):
    """Next-token prediction over whole documents."""

    type: Literal["pt"] = "pt"


class SupervisedFineTuning(Section):
    """Learn the answers of conversations."""

    type: Literal["sft"] = "sft"
