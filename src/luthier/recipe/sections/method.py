"""Which weights move: the methods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.sections.base import Positive, Section


class Full(Section):
    """Every weight is trained."""

    type: Literal["full"] = "full"


class Freeze(Section):
    """Some modules are trained, the rest is frozen."""

    type: Literal["freeze"] = "freeze"
    layers: int = 2
    """Train the last n decoder layers; a negative number trains the first n; 0 trains none."""
    modules: tuple[str, ...] = ()
    """Also train modules whose name ends in one of these, e.g. `["q_proj", "norm"]`, in every layer."""
    embeddings: bool = False
    """Also train the token embeddings (and a tied head)."""
    head: bool = False
    """Also train the output head."""


class LoRA(Section):
    """Low-rank adapters beside frozen weights (Hu et al. 2021)."""

    type: Literal["lora"] = "lora"
    rank: Positive = 8
    """Inner dimension of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """The update is scaled by alpha / rank (alpha / √rank with `rslora`)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input."""
    target: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but the head), or names such as `[q_proj, v_proj]`."""
    rslora: bool = False
    """Rank-stabilised scaling alpha / √rank (Kalajdzievski 2023)."""
    dora: bool = False
    """Weight-decomposed adapters: train a magnitude per output (Liu et al. 2024)."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained whole and saved with the adapter, e.g. `[embed_tokens, lm_head]`."""


Method = Annotated[Full | Freeze | LoRA, Field(discriminator="type")]
