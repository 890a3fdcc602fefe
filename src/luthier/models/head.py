r"""What a model does between its last hidden state and its logits, in four numbers.

Training needs the log-probability of a few tokens, never the whole [T, V] matrix of logits, so the output head is taken out of the
model and computed in chunks (`luthier.kernels.logprob`). For that its form must be known:

    logits = c · tanh((h Wᵀ + b) · s / c)          (c = 0: no cap)

with weight W [V, H], bias b [V] (Phi, GPT-J), multiplier s (Granite divides, Cohere multiplies) and soft-cap c (Gemma-2).
The form is read from the model's config and then *checked* against the logits that the model itself gives for 8 tokens. Where they
differ, the plain head and one with a measured multiplier are tried, and what was found is said; a head that none of these
describes is refused, because training on wrong logits looks like training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.lora import LoRALinear
from luthier.models.legacy.norm_head import NormHead

PROBE_TOKENS = 8
"""Tokens on which a head is checked."""

MULTIPLIERS: dict[str, Callable[[Any], float]] = {
    "logits_scaling": lambda config: 1.0 / config.logits_scaling,
    "logit_scale": lambda config: float(config.logit_scale),
    "lm_head_multiplier": lambda config: float(config.lm_head_multiplier),
    "dim_model_base": lambda config: config.dim_model_base / config.hidden_size,
}
"""Config fields that scale the logits, and the multiplier each means: Granite, Cohere, Falcon-H1, MiniCPM-3."""


@dataclass(frozen=True, slots=True)
class Head:
    """The output head.

    Attributes:
        weight: [V, H], in the model's dtype; the very parameter of the model, so that gradients reach it.
        bias: [V] or None.
        scale: multiplier of the logits, before the cap.
        softcap: bound c of the logits; 0 is none.
        note: what had to be assumed, in a sentence, or None when the config said it all.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0
    note: str | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H], in the model's dtype. For a few rows; training uses the chunked kernel."""
        raw = nn.functional.linear(hidden, self.weight, self.bias) * self.scale
        return self.softcap * torch.tanh(raw / self.softcap) if self.softcap else raw

    def at(self, temperature: float) -> Head:
        """The head of the model that is sampled at this temperature: every logit divided by it, the cap's bound with it."""
        return replace(self, scale=self.scale / temperature, softcap=self.softcap / temperature) if temperature != 1 else self


@torch.no_grad()
def describe(model: PreTrainedModel) -> Head:
    """The head of a causal language model, checked against the model's own logits.

    Raises:
        UserError: no linear output head, or one that computes something else.
    """
    module = head_module(model)
    declared = _declared(model, module)
    hidden, logits = _probe(model)
    if _agree(declared.logits(hidden), logits):
        return declared
    plain = Head(declared.weight, declared.bias)
    fitted = replace(plain, scale=_measured_scale(plain.logits(hidden), logits))
    for candidate, name in ((plain, "the plain head"), (fitted, f"a multiplier of {fitted.scale:.6g}, measured,")):
        if _agree(candidate.logits(hidden), logits):
            return replace(candidate, note=f"output head: {name} gives this model's logits; its config says otherwise")
    raise UserError(
        f"the output head of {type(model).__name__} computes something that Luthier does not know",
        where="model.path",
        hint="Please report the architecture.",
    )


def live(model: PreTrainedModel, head: Head) -> Head:
    """The head with today's weight: with an adapter on the head itself, W + s·BA is computed anew (differentiably)."""
    module = head_module(model)
    return replace(head, weight=_weight(module), bias=getattr(module, "bias", None))


def head_module(model: PreTrainedModel) -> nn.Module:
    """The module that maps hidden states to logits (a linear layer, or an adapter around one).

    Raises:
        UserError: the model has none.
    """
    module = model.get_output_embeddings()
    if module is None or getattr(module, "weight", None) is None:
        raise UserError(
            f"{type(model).__name__} has no linear output head",
            where="model.path",
            hint="A decoder-only language model is needed.",
        )
    return module


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside; the model's mode comes back afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def probe_tokens(model: PreTrainedModel, count: int) -> Tensor:
    """`count` different token ids int64 [count] spread over the vocabulary, on the model's device."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return (torch.arange(1, count + 1, device=model.device) * 7919) % vocabulary


def _declared(model: PreTrainedModel, module: nn.Module) -> Head:
    config = model.config.get_text_config()
    scale = 1.0
    for field, multiplier in MULTIPLIERS.items():
        if getattr(config, field, None):
            scale *= multiplier(config)
    softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
    return Head(_weight(module), getattr(module, "bias", None), scale, softcap)


def _weight(module: nn.Module) -> Tensor:
    return module.effective_weight() if isinstance(module, LoRALinear | NormHead) else module.weight  # type: ignore[return-value]


def _probe(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Hidden states [8, H] and the model's own logits [8, V] for the same tokens."""
    tokens = probe_tokens(model, PROBE_TOKENS)[None]
    with evaluating(model):
        hidden = decoder(model)(input_ids=tokens, use_cache=False).last_hidden_state[0]
        logits = model(input_ids=tokens, use_cache=False).logits[0]
    return hidden, logits


def decoder(model: PreTrainedModel) -> nn.Module:
    """The model without its output head; its `last_hidden_state` is the head's input."""
    return model.base_model


def _measured_scale(plain: Tensor, logits: Tensor) -> float:
    """The least-squares multiplier from the plain logits to the model's."""
    x, y = plain.double().flatten(), logits.double().flatten()
    return float((x @ y) / (x @ x).clamp_min(1e-30))


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """‖ours - theirs‖ / ‖theirs‖ in float32."""
    reference = torch.linalg.vector_norm(theirs.float()).clamp_min(1e-12)
    return float(torch.linalg.vector_norm(ours.float() - theirs.float()) / reference)


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two sets of logits differ by the rounding of their dtype only."""
    if ours.shape != theirs.shape:
        return False
    return relative_difference(ours, theirs) <= max(1e-5, 2 * torch.finfo(ours.dtype).eps)
