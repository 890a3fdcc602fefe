r"""What is made of two answers' log-ratios: the losses of the family of direct preference optimisation.

For a prompt x with answers y⁺ and y⁻ let r(y) = log π(y|x) - log π_ref(y|x), summed over the tokens of the answer, m = r(y⁺) - r(y⁻), and
r̄ = r / |y| its mean. σ is the logistic function, ε `label_smoothing`.

    sigmoid       -(1 - ε) log σ(βm) - ε log σ(-βm)                    Rafailov et al. 2023 (2305.18290); ε: conservative DPO
    sigmoid_norm  -log σ(β (r̄⁺ - r̄⁻))                                 the same per token, so that long answers weigh no more (2411.15124)
    hinge         max(0, 1 - βm)                                       Zhao et al. 2023 (2305.10425), Liu et al. 2023 (2309.06657)
    ipo           (r̄⁺ - r̄⁻ - 1/(2β))²                                 Azar et al. 2023 (2310.12036)
    robust        (-(1 - ε) log σ(βm) + ε log σ(-βm)) / (1 - 2ε)       Chowdhury et al. 2024 (2403.00409): unbiased if ε are mislabelled
    exo_pair      KL((σ(βm), σ(-βm)) ‖ (1 - ε, ε))                     Ji et al. 2024 (2402.00856)
    discopop      (1 - s) · -log σ(βm) + s · exp(-βm), s = σ(βm/τ)     Lu et al. 2024 (2406.08414)
    nca_pair      -log σ(βr⁺) - ½ log σ(-βr⁺) - ½ log σ(-βr⁻)          Chen et al. 2024 (2402.05369)
    bco_pair      -log σ(βr⁺) - log σ(-βr⁻)                            Jung et al. 2024 (2404.04656), without its shift
    sppo_hard     (r⁺ - 1/(2β))² + (r⁻ + 1/(2β))²                      Wu et al. 2024 (2405.00675), the better answer winning for sure
    apo_zero      1 - σ(βr⁺) + σ(βr⁻)                                  D'Oosterlinck et al. 2024 (2408.06266): y⁺ better than the policy
    apo_down      σ(βr⁺) + 1 - σ(βm)                                   the same: y⁺ worse than the policy
    aot, aot_unpaired                                                  Melnyk et al. 2024 (2406.05882), see `sorting`

In `ipo` the paper's r is a sum; its authors' own results, and other implementations, use the mean, which keeps β the same for all lengths.

With another divergence than the reverse KL, r is replaced by f'(π/π_ref) (Wang et al. 2023, arXiv:2309.16240); see `diverged`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from luthier.recipe.schema import CPO, Pairwise

LARGEST_EXPONENT = 80.0
"""exp of more than this is close to the end of float32."""


class Ratios(NamedTuple):
    """What is known of P pairs.

    Args:
        chosen: log-ratio r(y⁺) [P], differentiable.
        rejected: log-ratio r(y⁻) [P], differentiable.
        chosen_length: tokens of y⁺ [P].
        rejected_length: tokens of y⁻ [P].
        columns: what was found out about the whole batch, by name, of each better and each worse answer [P].
    """

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    columns: dict[str, tuple[Tensor, Tensor]]

    @property
    def margin(self) -> Tensor:
        """r(y⁺) - r(y⁻) [P]."""
        return self.chosen - self.rejected

    @property
    def mean_margin(self) -> Tensor:
        """The same of means over tokens [P]."""
        return self.chosen / self.chosen_length - self.rejected / self.rejected_length


def smoothed(scaled: Tensor, share: float) -> Tensor:
    """Logistic loss of a margin, of which a share is taken for the wrong way round."""
    return -(1 - share) * logsigmoid(scaled) - share * logsigmoid(-scaled)


def sigmoid(of: Ratios, stage: Pairwise | CPO) -> Tensor:
    """Direct preference optimisation."""
    return smoothed(stage.beta * of.margin, stage.label_smoothing)


def sigmoid_norm(of: Ratios, stage: Pairwise) -> Tensor:
    """Direct preference optimisation, per token."""
    return -logsigmoid(stage.beta * of.mean_margin)


def hinge(of: Ratios, stage: Pairwise | CPO) -> Tensor:
    """Nothing more to gain from a margin of 1/β."""
    return torch.relu(1 - stage.beta * of.margin)


def ipo(of: Ratios, stage: Pairwise | CPO) -> Tensor:
    """A margin of 1/(2β) a token, not more and not less."""
    return (of.mean_margin - 1 / (2 * stage.beta)).square()


def robust(of: Ratios, stage: Pairwise) -> Tensor:
    """Unbiased where that share of the labels is wrong."""
    scaled, share = stage.beta * of.margin, stage.label_smoothing
    return (-(1 - share) * logsigmoid(scaled) + share * logsigmoid(-scaled)) / (1 - 2 * share)


def exo_pair(of: Ratios, stage: Pairwise) -> Tensor:
    """The reverse KL divergence of the policy's choice from the labels'."""
    scaled, share = stage.beta * of.margin, stage.label_smoothing
    right = torch.sigmoid(scaled) * (logsigmoid(scaled) - math.log1p(-share))
    return right + torch.sigmoid(-scaled) * (logsigmoid(-scaled) - math.log(share))


def discopop(of: Ratios, stage: Pairwise) -> Tensor:
    """A blend, found by search, of the logistic and the exponential loss."""
    scaled = stage.beta * of.margin
    return torch.lerp(-logsigmoid(scaled), torch.exp(-scaled), torch.sigmoid(scaled / stage.tau))


def nca_pair(of: Ratios, stage: Pairwise) -> Tensor:
    """Each answer against noise, so that the better one's probability does not fall with the worse one's."""
    chosen, rejected = stage.beta * of.chosen, stage.beta * of.rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(of: Ratios, stage: Pairwise) -> Tensor:
    """A classifier of single answers whose logit is the reward."""
    return -logsigmoid(stage.beta * of.chosen) - logsigmoid(-stage.beta * of.rejected)


def sppo_hard(of: Ratios, stage: Pairwise) -> Tensor:
    """Log-ratios of ½/β and -½/β: one step of self-play."""
    target = 0.5 / stage.beta
    return (of.chosen - target).square() + (of.rejected + target).square()


def apo_zero(of: Ratios, stage: Pairwise) -> Tensor:
    """The better answer up, the worse one down."""
    return 1 - torch.sigmoid(stage.beta * of.chosen) + torch.sigmoid(stage.beta * of.rejected)


def apo_down(of: Ratios, stage: Pairwise) -> Tensor:
    """Both down, the worse one more."""
    return torch.sigmoid(stage.beta * of.chosen) + 1 - torch.sigmoid(stage.beta * of.margin)


def aot(of: Ratios, stage: Pairwise) -> Tensor:
    """The policy's margins over the reference's of the same rank; `shift` is the pair's own margin there minus that one."""
    shift, _ = of.columns["aot_shift"]
    return smoothed(stage.beta * (of.margin + shift), stage.label_smoothing)


def aot_unpaired(of: Ratios, stage: Pairwise) -> Tensor:
    """Better answers over worse ones of the same rank, in two halves: each moves one side, and the value is counted once."""
    of_chosen, of_rejected = of.columns["aot_partner"]
    up = smoothed(stage.beta * (of.chosen - of_chosen), stage.label_smoothing)
    down = smoothed(stage.beta * (of_rejected - of.rejected), stage.label_smoothing)
    return up + down - down.detach()


PAIR_LOSSES: dict[str, Callable[[Ratios, Pairwise], Tensor]] = {
    function.__name__: function
    for function in (
        sigmoid,
        sigmoid_norm,
        hinge,
        ipo,
        robust,
        exo_pair,
        discopop,
        nca_pair,
        bco_pair,
        sppo_hard,
        apo_zero,
        apo_down,
        aot,
        aot_unpaired,
    )
}
"""The loss of each pair [P] by its name in the recipe."""


def diverged(ratio: Tensor, stage: Pairwise) -> Tensor:
    """The reward (over β) that a log-ratio log t stands for: f'(t) of the divergence, up to a constant that cancels in a margin.

    reverse_kl: log t; forward_kl: 1 - 1/t; js: log 2t/(t + 1); alpha: (t^(α-1) - 1) / (α - 1), which is log t for α = 1.
    """
    if stage.divergence == "forward_kl":
        return 1 - torch.exp((-ratio).clamp(max=LARGEST_EXPONENT))
    if stage.divergence == "js":
        return math.log(2) + logsigmoid(ratio)
    power = stage.divergence_alpha - 1
    if stage.divergence == "alpha" and abs(power) > 1e-6:
        return torch.expm1((power * ratio).clamp(max=LARGEST_EXPONENT)) / power
    return ratio
