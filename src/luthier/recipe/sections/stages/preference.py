"""Stages that learn from pairs of a better and a worse answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.recipe.sections.base import Above, Positive, Section, Share, Weight

Smoothing = Annotated[float, Field(ge=0.0, lt=0.5)]

PairLoss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "discopop",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "aot",
    "aot_unpaired",
]
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")
"""Losses with `label_smoothing`."""
OF_DIFFERENCES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "discopop")
"""Losses of nothing but the difference of two rewards: those that another divergence has a meaning for."""


class Pairwise(Section):
    """What is made of a better and a worse answer, held to a reference."""

    loss: PairLoss | dict[PairLoss, Above] = "sigmoid"
    """What is made of the margin between the two answers; a sum of several, with weights: `{sigmoid: 0.8, bco_pair: 0.2}`."""
    beta: Above = 0.1
    """How firmly the policy is held to the reference: a larger value keeps it nearer."""
    label_smoothing: Smoothing = 0.0
    """Share of the pairs that are taken to be labelled the wrong way round: `sigmoid` (conservative DPO), `robust`, `exo_pair`, `aot`."""
    sft_weight: Weight = 0.0
    """Weight of the likelihood of the better answer, added to the loss (RPO); keeps its probability from falling."""
    ld_alpha: Share = 1.0
    """Weight of the tokens beyond the length of the shorter answer (LD-DPO): below 1, length alone counts for less."""
    tau: Above = 0.05
    """Temperature of the blend in `discopop`."""
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """How distance from the reference is measured (f-DPO); all but `reverse_kl` only with losses of the difference between two answers."""
    divergence_alpha: Share = 0.5
    """α of `divergence: alpha`: 1 is the reverse, 0 the forward KL divergence."""

    @property
    def losses(self) -> dict[PairLoss, float]:
        """Weight of each loss."""
        return self.loss if isinstance(self.loss, dict) else {self.loss: 1.0}

    @model_validator(mode="after")
    def _consistent(self) -> Pairwise:
        if not self.losses:
            raise ValueError("`stage.loss` names no loss")
        if self.label_smoothing and not any(name in SMOOTHED for name in self.losses):
            raise ValueError(f"`stage.label_smoothing` is for the losses {_listed(SMOOTHED)}")
        if "exo_pair" in self.losses and not self.label_smoothing:
            raise ValueError("`stage.loss: exo_pair` needs `stage.label_smoothing` above 0, such as 0.001")
        if self.divergence != "reverse_kl" and any(name not in OF_DIFFERENCES for name in self.losses):
            raise ValueError(f"`stage.divergence: {self.divergence}` is for the losses {_listed(OF_DIFFERENCES)}")
        return self


class Following(Section):
    """The reference is moved to where the policy is, now and then (Trust Region DPO, Gorbatovski et al. 2024)."""

    update: Positive
    """Optimizer steps between two moves."""
    mix: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """How far it moves: 1 all the way, less a part of it (with `method: full`, `freeze` or `llama_pro` only)."""


class DPO(Pairwise):
    """Raise the better answer over the worse one, as far as a reference model allows (Direct Preference Optimization and its kin)."""

    type: Literal["dpo"] = "dpo"
    reference: Literal["auto", "precompute"] | Following = "auto"
    """Where the reference's log-probabilities come from: each pass (`auto`) or once, before the first step; or how it moves."""


class ORPO(Section):
    """Learn the better answer, and raise its odds over the worse one's; needs no reference (Odds Ratio Preference Optimization)."""

    type: Literal["orpo"] = "orpo"
    beta: Weight = 0.1
    """Weight of the odds ratio beside the likelihood (λ in the paper)."""


class CPO(Section):
    """Learn the better answer and raise it over the worse one, without a reference (Contrastive Preference Optimization)."""

    type: Literal["cpo"] = "cpo"
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """What is made of the difference of the two log-probabilities; `ipo` takes their means over tokens."""
    beta: Above = 0.1
    """How steep the loss is."""
    label_smoothing: Smoothing = 0.0
    """Share of the pairs that are taken to be labelled the wrong way round; with `sigmoid`."""
    sft_weight: Weight = 1.0
    """Weight of the likelihood of the better answer beside the preference."""

    @model_validator(mode="after")
    def _consistent(self) -> CPO:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError("`stage.label_smoothing` is for `stage.loss: sigmoid`")
        return self


class SimPO(Section):
    """Raise the better answer over the worse one by a margin, per token, without a reference (Simple Preference Optimization)."""

    type: Literal["simpo"] = "simpo"
    beta: Above = 2.0
    """Scale of the reward, which is the mean log-probability of an answer's tokens."""
    gamma: Weight = 1.0
    """By how much the better answer's reward is to exceed the worse one's."""
    alpha: float = 0.0
    """Shape of the reward (AlphaPO): 0 is the logarithm; other values change how much unlikely answers weigh."""
    label_smoothing: Smoothing = 0.0
    """Share of the pairs that are taken to be labelled the wrong way round."""
    sft_weight: Weight = 0.0
    """Weight of the likelihood of the better answer, added to the loss (CPO-SimPO)."""


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
