"""The reference of preference losses: the policy as it was before the first step, at no cost of memory where that is possible.

* A low-rank adapter begins exactly at the base model (B is zero, or its first values are taken off its update), so the reference is
  the model with the adapter switched off. One copy of the base serves both.
* An adapter that begins elsewhere (one that is continued, LoftQ, a learnt prefix) has a frozen copy of its first values, which take
  the place of the present ones for the pass. It is saved with each checkpoint.
* Weights that are trained whole need a frozen copy of themselves. It is not saved: the base model still has them.

It may also follow the policy (`stage.reference: {update: n, mix: α}`; Trust Region DPO, Gorbatovski et al. 2024,
arXiv:2404.09656). Every n steps

    θ_ref ← α θ + (1 - α) θ_ref

so that β holds the policy to where it was of late, not to where it began. That takes a copy, which is saved with each checkpoint.

Or the log-probabilities are computed once, before the first step (`stage.reference: precompute`, see `precomputed`): then a step costs no
more than one of supervised fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.data.batch import Batch, Drawn
from luthier.generation.decode import evaluating
from luthier.models.adapters.lora import without_adapters
from luthier.models.policy import Policy
from luthier.objectives import score
from luthier.recipe.schema import WHOLE, AdaLoRA, Following, LoRA, Recipe

REFERENCE = "reference"
"""Column of a batch that holds its log-probabilities, where they were computed before."""
PREFIX = "reference."
"""Before the names of the first values among a checkpoint's tensors."""


class Reference:
    """The policy as it was; make it before a checkpoint is loaded into the policy.

    Args:
        policy: the policy at its start.
        recipe: says how it starts.

    Attributes:
        column: its log-probability of each token of the store, float32 [N], where they were computed before.
    """

    def __init__(self, policy: Policy, recipe: Recipe) -> None:
        self.policy = policy
        self.column: NDArray[np.float32] | None = None
        self._first: dict[str, Tensor] | None = None
        self._is_adapter = recipe.method.type not in WHOLE
        following = getattr(recipe.stage, "reference", None)
        self._following = following if isinstance(following, Following) else None
        if self._following or not starts_at_base(recipe):
            self._first = {name: parameter.detach().clone() for name, parameter in policy.trainable.parameters.items()}

    @torch.no_grad()
    def logprobs(self, batch: Batch, *, packing: bool) -> Tensor:
        """Log-probabilities of the targets of a batch, float32 [R]."""
        with evaluating(self.policy.model), self._as_it_was():
            return score(self.policy, batch, packing=packing).logprob

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move to where the policy is, if it is time for that after so many steps."""
        if self._following is None or step % self._following.update:
            return
        assert self._first is not None
        for name, parameter in self.policy.trainable.parameters.items():
            self._first[name].lerp_(parameter.detach(), self._following.mix)

    def known(self, drawn: Drawn) -> Drawn:
        """A global batch with what is known of it before."""
        if self.column is None or len(self.column) != len(drawn.store.tokens):
            return drawn
        return drawn._replace(of_tokens={**drawn.of_tokens, REFERENCE: self.column})

    def forget(self) -> None:
        """Give the memory of a frozen copy of whole weights back: all that is asked for is known."""
        if self._first is not None and not self._is_adapter:
            self._first = {}

    def state(self) -> dict[str, Tensor]:
        """What a resume needs of it."""
        kept = self._first if self._is_adapter or self._following else None
        return {f"{PREFIX}{name}": value for name, value in (kept or {}).items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up a state written by `state`."""
        for name, value in (self._first or {}).items():
            if self._is_adapter or self._following:
                value.copy_(tensors[f"{PREFIX}{name}"])

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """The policy's first values in the place of the present ones; nothing is copied."""
        if self._first is None:
            with without_adapters(self.policy.model):
                yield
            return
        parameters = self.policy.trainable.parameters
        now = {name: parameter.data for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            parameter.data = self._first[name]
        try:
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = now[name]


def starts_at_base(recipe: Recipe) -> bool:
    """Whether the policy without its adapter is the policy at step 0."""
    method = recipe.method
    fresh = isinstance(method, LoRA | AdaLoRA) and recipe.model.adapter is None
    return fresh and not (isinstance(method, LoRA) and method.init == "loftq")
