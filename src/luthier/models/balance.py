r"""The loss that keeps a mixture's experts evenly used (Shazeer et al. 2017; Fedus et al. 2021, arXiv:2101.03961, eq. 4-6).

With E experts, of which each token goes to k, and for a set of tokens and a layer

    L = E · Σ_e f_e P_e          f_e = share of the tokens that go to e (Σ_e f_e = k),  P_e = mean of the router's probability of e

L is k where all experts are used alike, and grows towards E k where the same ones are always taken. f is a count and has no gradient;
through P the routers learn, and so does whatever stands before them.

Which set of tokens? L is no sum over tokens, so its value depends on the set. transformers takes whatever lies in a forward pass: the same
examples in other micro-batches are then another loss. Here the set is a segment, as for DeepSeek ("sequence-wise",
arXiv:2401.06066, arXiv:2412.19437), and a layer: segments are never cut, so packed, padded, accumulated and distributed steps learn the
same. Segments count by their tokens, all tokens, layers alike. For one segment and one layer L is the number that transformers'
`load_balancing_loss_func` gives. (For several layers that function throws their experts together by number, so that one layer can make up
for another; here each has to be even itself.)

How a router's numbers become probabilities is asked of the model: softmax, or a sigmoid divided by its sum, whichever explains the weights
that the chosen experts get for a few tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.prompts import prefix_length
from luthier.models.head import decoder, evaluating, probe_tokens
from luthier.models.mixture import Mixture, mixtures, routers

PROBE_TOKENS = 8
"""Tokens on which a router is watched."""
DEFAULT = "router_aux_loss_coef"
"""Field of a model's config that says how much its makers gave the loss."""


def balance_weight(model: PreTrainedModel, asked: float | None) -> float:
    """How much the loss counts: what the recipe asks for, else the config's own if a router is trained, else nothing.

    Raises:
        UserError: it is asked for, and the model has no experts, or a learnt prefix.
    """
    found = routers(model)
    if asked and not found:
        raise UserError("this model has no experts to keep even", where="train.router_aux_loss", hint="Leave it out.")
    if asked and prefix_length(model):
        raise UserError(
            "the balance of experts is not measured behind a learnt prefix", where="train.router_aux_loss", hint="Set it to 0."
        )
    if asked is not None:
        return asked
    trained = any(value.requires_grad for router in found.values() for value in router.parameters())
    return float(getattr(model.config.get_text_config(), DEFAULT, None) or 0.0) if trained else 0.0


class Balance:
    """Watches the routers of a model while it runs, and adds up how unevenly they choose.

    Args:
        model: a mixture of experts, with its method applied.
        weight: how much the loss counts.

    Attributes:
        weight: the same.

    Raises:
        UserError: how its routers weigh is not known.
    """

    def __init__(self, model: PreTrainedModel, weight: float) -> None:
        self.weight = weight
        self._layers = [_Layer(model, mixture) for mixture in mixtures(model) if mixture.routers]
        with evaluating(model):
            self._watch(True)
            decoder(model)(input_ids=probe_tokens(model, PROBE_TOKENS)[None], use_cache=False)
        for layer in self._layers:
            layer.find_scoring()
        self._watch(False)
        self._sum: Tensor | None = None

    def begin(self) -> None:
        """Watch the forward pass that comes next."""
        self._watch(True)

    def end(self, owner: Tensor) -> None:
        """The pass is over.

        Args:
            owner: int64 [N], the segment of each position that was computed, from 0; -1 for padding.
        """
        real = owner >= 0
        lengths = torch.bincount(owner[real])
        losses = [layer.loss(owner, real, lengths) for layer in self._layers]
        self._watch(False)
        found = torch.stack(losses).mean()
        self._sum = found if self._sum is None else self._sum + found

    def take(self) -> Tensor:
        """The sum over the segments since the last call of L times the segment's length: float32, differentiable."""
        assert self._sum is not None, "nothing has been watched"
        found, self._sum = self._sum, None
        return found

    def _watch(self, wanted: bool) -> None:
        for layer in self._layers:
            layer.watched = wanted
            layer.forget()


class _Layer:
    """One layer's router: what it said of the tokens of a pass, and which experts they went to."""

    def __init__(self, model: nn.Module, mixture: Mixture) -> None:
        self.name, self.count = next(iter(mixture.routers)), mixture.count
        self.watched, self.sigmoid = False, False
        self.forget()
        model.get_submodule(self.name).register_forward_hook(self._hear)
        mixture.experts.register_forward_pre_hook(self._see, with_kwargs=True)

    def forget(self) -> None:
        """Keep nothing of the pass."""
        self.logits: Tensor | None = None
        self.index: Tensor | None = None
        self.share: Tensor | None = None

    def loss(self, owner: Tensor, real: Tensor, lengths: Tensor) -> Tensor:
        """Σ over segments of L times the length, for this layer."""
        assert self.logits is not None
        assert self.index is not None
        probabilities, segments = self.probabilities()[real], owner[real]
        place = segments[:, None] * self.count + self.index[real]
        chosen = torch.bincount(place.flatten(), minlength=len(lengths) * self.count).view(-1, self.count)
        likely = probabilities.new_zeros(chosen.shape).index_add(0, segments, probabilities)
        return self.count * ((chosen * likely).sum(1) / lengths.clamp_min(1)).sum()

    def probabilities(self) -> Tensor:
        """float32 [N, E], each row adding up to 1."""
        assert self.logits is not None
        if not self.sigmoid:
            return torch.softmax(self.logits.float(), dim=-1)
        scores = torch.sigmoid(self.logits.float())
        return scores / scores.sum(-1, keepdim=True)

    def find_scoring(self) -> None:
        """Find out which function explains the weights of the chosen experts.

        Raises:
            UserError: none that is known, or the router was not heard.
        """
        if self.logits is not None and self.index is not None and self.share is not None:
            for self.sigmoid in (False, True):
                ratio = self.share.float() / self.probabilities().gather(1, self.index).clamp_min(1e-30)
                if self.share.shape[1] == 1 and bool((self.share == 1).all()):
                    return  # one expert with full weight: nothing to tell by, and softmax is usual
                spread = ratio.amax(1) - ratio.amin(1) if self.share.shape[1] > 1 else ratio - ratio.mean()
                if bool((spread.abs() <= 0.05 * ratio.abs().mean()).all()):
                    return
        raise UserError(
            f"how the router `{self.name}` weighs experts is not known, so their use cannot be evened out",
            where="train.router_aux_loss",
            hint="Set it to 0.",
        )

    def _hear(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """What the router says: the first thing that has a number for each expert."""
        if self.watched:
            parts = output if isinstance(output, tuple) else (output,)
            rows = (part for part in parts if isinstance(part, Tensor) and part.is_floating_point())
            self.logits = next((part.flatten(0, -2) for part in rows if part.shape[-1] == self.count), None)

    def _see(self, _module: nn.Module, inputs: Any, keywords: Any) -> None:
        """What the experts are given: hidden states, then experts and weights of each token."""
        if self.watched:
            small = [part for part in (*inputs[1:], *keywords.values()) if isinstance(part, Tensor) and part.ndim == 2]
            self.index = next((part for part in small if not part.is_floating_point()), None)
            self.share = next((part for part in small if part.is_floating_point()), None)
