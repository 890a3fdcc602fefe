r"""The critic: what a text is worth so far, V(y_<t), as one number from the last hidden state before token t.

    head     V = h · w + b on the policy's own states: a few thousand numbers more, and the policy learns to serve both
    model    the same on the states of a second model, a copy of the policy at its start, which the policy cannot disturb

A copy has its own trained weights; what is frozen is shared with the policy, so a separate critic of a LoRA run costs an adapter, not a
model. w and b begin at 0: a fresh critic expects nothing, and the first advantages are the rewards.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.models.policy import Policy

if TYPE_CHECKING:
    from luthier.data.batch import Batch

FILE = "critic.safetensors"
PREFIX = "critic."
"""Before the names of a critic's parameters among those of the policy."""


class ValueCritic:
    """A linear head on hidden states.

    Args:
        policy: whose answers are valued.
        own_model: whether the states are those of a copy of the policy.

    Attributes:
        parameters: what is trained, by name.
    """

    def __init__(self, policy: Policy, *, own_model: bool) -> None:
        hidden = policy.head.weight.shape[1]
        self.head = nn.Linear(hidden, 1, dtype=torch.float32, device=policy.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.backbone = _twin(policy) if own_model else None
        self.parameters = {f"{PREFIX}head.{name}": value for name, value in self.head.named_parameters()}
        if self.backbone is not None:
            unused = self.backbone.model.get_output_embeddings()
            needless = set() if self.backbone.model.config.tie_word_embeddings else {id(p) for p in unused.parameters()}
            trained = self.backbone.trainable.parameters.items()
            self.parameters |= {f"{PREFIX}model.{name}": value for name, value in trained if id(value) not in needless}

    def values(self, batch: Batch, states: Tensor, *, packing: bool) -> Tensor:
        """The value of the text before each target, float32 [R].

        Args:
            batch: on the policy's device.
            states: [R, H], the policy's hidden states that predict the targets.
            packing: see `Policy.hidden`.
        """
        if self.backbone is not None:
            states = self.backbone.hidden(batch, packing=packing).index_select(0, batch.targets - 1)
        found: Tensor = self.head(states.float())
        return found[:, 0]

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write its parameters into `folder`, from their masters in `weights` where they have some."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {name: weights.get(name, value).detach().contiguous() for name, value in self.parameters.items()}
        save_file(values, folder / FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take up what `save` wrote."""
        stored = load_file(folder / FILE)
        for name, value in self.parameters.items():
            value.copy_(stored[name])


def _twin(policy: Policy) -> Policy:
    """A copy of the policy with trained weights of its own; frozen ones are the same tensors."""
    trained = {id(value) for value in policy.trainable.parameters.values()}
    shared = {id(value): value for value in policy.model.parameters() if id(value) not in trained}
    return Policy(copy.deepcopy(policy.model, shared))
