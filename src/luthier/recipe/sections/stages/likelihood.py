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
    loss: Literal["nll", "dft"] = "nll"
    """The likelihood (`nll`), or each token weighted by its present probability, so that unlikely ones pull less (`dft`)."""
