r"""From float32 to bfloat16 without losing what is smaller than a step of it.

bfloat16 has 8 bits of precision: of a weight near 1, an update below 2⁻⁹ = 0.002 rounds to nothing, and the updates of fine-tuning are
smaller than that. Two remedies that need no float32 copy of the weights:

* *Stochastic rounding*: up or down by chance, with the probability that makes the mean right, E[round(x)] = x. Adding 16 random bits below
  the cut and cutting does just that (Gupta et al. 2015; for training in bfloat16: Zamirai et al. 2020).
* *Kahan's summation* (1965): what rounding took away, c = x - round(x), is kept in a bfloat16 of its own and added before the next update.
  The pair holds about 16 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor


def round_stochastically(value: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 to bfloat16 by chance, without bias; exact values, infinities and NaN stay what they are.

    Args:
        value: float32, any shape.
        generator: on the device of `value`.
    """
    noise = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    cut = (value.view(torch.int32) + noise).bitwise_and_(-1 << 16).view(torch.float32)
    return torch.where(torch.isfinite(value), cut, value).to(torch.bfloat16)


def split(value: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 value as the nearest bfloat16 and, in bfloat16, what that leaves out."""
    near = value.to(torch.bfloat16)
    left = (value - near.float()).to(torch.bfloat16)
    tie = (near.float() + left.float()).to(torch.bfloat16) != near
    return near, torch.where(tie, left * (1 - 2**-7), left)  # so that their sum rounds to the first again
