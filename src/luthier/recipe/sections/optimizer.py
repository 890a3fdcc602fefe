"""The rule that turns gradients into updates, and which weights have settings of their own."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from luthier.recipe.sections.base import Positive, Section

Decay = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]


class AdamW(Section):
    """AdamW (Loshchilov & Hutter 2019): a mean and a mean square of the gradient for each weight."""

    type: Literal["adamw"] = "adamw"
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.999
    """Decay of the second moment."""
    epsilon: Rate = 1e-8
    """Added to the root of the second moment."""
    bits: Literal[8, 32] = 32
    """Bits of each moment; 8 needs bitsandbytes and saves 6 bytes a trained weight."""
    paged: bool = False
    """Moments that a full GPU pushes out into main memory (bitsandbytes); on a CPU there is nothing to push."""
    offload: bool = False
    """Masters, gradients and moments in main memory, updated by the CPU: 16 bytes a trained weight less on the GPU, and slower."""


class SGD(Section):
    """Stochastic gradient descent with momentum: one state for each weight, or none."""

    type: Literal["sgd"] = "sgd"
    momentum: Decay = 0.9
    """Decay of the running sum of gradients; 0 keeps no state at all."""
    nesterov: bool = False
    """Look ahead by one step of the momentum."""


class Adafactor(Section):
    """Adafactor (Shazeer & Stern 2018): the second moment of a matrix as one row and one column."""

    type: Literal["adafactor"] = "adafactor"
    beta1: Decay | None = None
    """Decay of a first moment; without one there is none, and no memory for it."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    """The second moment forgets with 1 - t^-decay at step t."""
    clip: Rate = 1.0
    """Largest root mean square of an update, per parameter."""
    scale: bool = False
    """Multiply each update by the root mean square of its parameter."""


class Lion(Section):
    """Lion (Chen et al. 2023): the sign of a momentum. Needs bitsandbytes; use a third to a tenth of AdamW's learning rate."""

    type: Literal["lion"] = "lion"
    beta1: Decay = 0.9
    """Share of the momentum in the update's sign."""
    beta2: Decay = 0.99
    """Decay of the momentum."""
    bits: Literal[8, 32] = 32
    """Bits of the momentum."""


class AdamMini(Section):
    """Adam-mini (Zhang et al. 2024): one second moment for a head or a matrix instead of one for a weight. Needs adam-mini."""

    type: Literal["adam_mini"] = "adam_mini"
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.999
    """Decay of the second moment."""
    epsilon: Rate = 1e-8
    """Added to the root of the second moment."""


class Muon(Section):
    """Muon (Jordan 2024): orthogonalised momentum for the matrices of the layers, AdamW for embeddings, head and vectors."""

    type: Literal["muon"] = "muon"
    momentum: Decay = 0.95
    """Decay of the momentum."""
    nesterov: bool = True
    """Look ahead by one step of the momentum."""
    iterations: Annotated[int, Field(gt=0, lt=100)] = 5
    """Newton-Schulz iterations."""
    adjust: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Size of an update: as large as AdamW's, so that its learning rates fit (Liu et al. 2025), or as first published."""
    beta1: Decay = 0.9
    """First moment of the AdamW part."""
    beta2: Decay = 0.999
    """Second moment of the AdamW part."""
    epsilon: Rate = 1e-8
    """Added to the root of the AdamW part's second moment."""


class GaLore(Section):
    """GaLore (Zhao et al. 2024): AdamW in the leading subspace of each matrix's gradient. Needs galore-torch."""

    type: Literal["galore"] = "galore"
    rank: Positive = 128
    """Dimension of the subspace."""
    update_every: Positive = 200
    """Steps between two singular value decompositions."""
    scale: Rate = 0.25
    """Factor of the projected updates."""
    projection: Literal["std", "reverse_std", "right", "left"] = "std"
    """Which side is projected: the shorter (`std`), the longer, or always the same."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.999
    """Decay of the second moment."""
    epsilon: Rate = 1e-6
    """Added to the root of the second moment."""


class Apollo(Section):
    """APOLLO (Zhu et al. 2024): the gradient, scaled per channel as AdamW would in a random subspace. Needs apollo-torch."""

    type: Literal["apollo"] = "apollo"
    rank: Positive = 256
    """Dimension of the subspace; 1 with `scale_by: tensor` and `scale: 128` is APOLLO-Mini."""
    update_every: Positive = 200
    """Steps between two random projections."""
    scale: Rate = 1.0
    """The updates are multiplied by its square root."""
    scale_by: Literal["channel", "tensor"] = "channel"
    """One factor for each channel, or one for the whole matrix."""
    projection: Literal["random", "svd"] = "random"
    """What spans the subspace."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.999
    """Decay of the second moment."""
    epsilon: Rate = 1e-6
    """Added to the root of the second moment."""


class BAdam(Section):
    """BAdam (Luo et al. 2024): AdamW on one decoder layer at a time; masters, gradients and moments exist for that layer alone."""

    type: Literal["badam"] = "badam"
    switch_every: Positive = 100
    """Steps before the next layer's turn."""
    order: Literal["ascending", "descending", "random"] = "random"
    """Which layer comes next; `random` goes through all of them in an order that each round draws anew."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.999
    """Decay of the second moment."""
    epsilon: Rate = 1e-8
    """Added to the root of the second moment."""


class ScheduleFree(Section):
    """Schedule-free AdamW (Defazio et al. 2024): an average of all steps takes the place of a decaying rate. Needs schedulefree."""

    type: Literal["schedule_free"] = "schedule_free"
    beta1: Decay = 0.9
    """Interpolation between the average and the newest point, where gradients are taken."""
    beta2: Decay = 0.999
    """Decay of the second moment."""
    epsilon: Rate = 1e-8
    """Added to the root of the second moment."""


Optimizer = Annotated[
    AdamW | SGD | Adafactor | Lion | AdamMini | Muon | GaLore | Apollo | BAdam | ScheduleFree, Field(discriminator="type")
]


class ParameterGroup(Section):
    """Trained weights with settings of their own, chosen by name."""

    match: str
    """A regular expression that is searched in the names of the trained parameters, e.g. `lora_B` or `layers\\.0\\.`."""
    learning_rate: Rate | None = None
    """Their peak learning rate. Default: `train.learning_rate`."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Their weight decay. Default: `train.weight_decay` for matrices, none for vectors."""

    @field_validator("match")
    @classmethod
    def _is_an_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"`match` is not a regular expression: {error}") from None
        return value
