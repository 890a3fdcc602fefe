"""The teacher of a distillation: a frozen model that says beside the student how likely every token would have been.

It reads the same batch, packed or padded as its own architecture allows, and its head is read where the student's is; of neither do full
logits exist (`luthier.kernels.divergence`). Its memory is that of its weights and of one forward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.kernels.divergence import Kind, Side, divergence
from luthier.models.linear import count_weights
from luthier.models.methods import Trainable
from luthier.models.policy import Policy

if TYPE_CHECKING:
    from luthier.data.batch import Batch
    from luthier.models.head import Head


class FrozenTeacher:
    """A model that is learnt from.

    Args:
        model: with the student's vocabulary; it is frozen and put into evaluation mode.
        kind: which way the distance is measured.
        beta: see `divergence`.
        temperature: see `divergence`.
    """

    def __init__(self, model: PreTrainedModel, *, kind: Kind, beta: float, temperature: float) -> None:
        model.requires_grad_(False).eval()
        self.policy = Policy(model, Trainable({}, count_weights(model), 0))
        self._kind, self._beta, self._temperature = kind, beta, temperature

    def divergence(self, batch: Batch, states: Tensor, head: Head, *, packing: bool) -> Tensor:
        """Distance of the student from the teacher at each target, float32 [R], differentiable in the student.

        Args:
            batch: on the teacher's device.
            states: [R, H], the student's hidden states that predict the targets.
            head: the student's.
            packing: see `Policy.hidden`.
        """
        with torch.no_grad():
            theirs = self.policy.hidden(batch, packing=packing).index_select(0, batch.targets - 1)
        how = {"kind": self._kind, "beta": self._beta, "temperature": self._temperature}
        return divergence(_side(states, head), _side(theirs, self.policy.head), **how)  # type: ignore[arg-type]


def _side(states: Tensor, head: Head) -> Side:
    return Side(states, head.weight, head.bias, head.scale, head.softcap)
