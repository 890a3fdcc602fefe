"""Do segments that lie in one row see each other? Asked of the model itself, not of its name.

Segments are laid end to end in one row with `position_ids` that restart at 0, without an attention mask and without a cache.
transformers builds a block-diagonal causal mask from such positions for most families (Llama, Qwen, GPT-2, Phi, Gemma, Mixtral,
Granite, Cohere, GLM …), but families that make their positions themselves (OPT, BLOOM and Falcon with ALiBi, MPT) or carry a
state (Mamba) let the first segment leak into the second: the logits change by whole units, and the loss still looks fine.

So, at load, two short segments are run packed and apart. Where the hidden states agree, packing is exact; where they do not, the
policy pads instead, and says so.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from luthier.models.head import decoder, evaluating, probe_tokens

FIRST, SECOND = 11, 7
"""Lengths of the two segments."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """The verdict.

    Attributes:
        ok: segments may share a row.
        reason: one clause for people, e.g. "packed and separate runs agree (difference 3e-07)".
    """

    ok: bool
    reason: str


def probe_isolation(model: PreTrainedModel) -> Isolation:
    """Run two segments packed and apart, and compare the hidden states of both (dropout off, no gradients)."""
    body = decoder(model)
    if "position_ids" not in inspect.signature(body.forward).parameters:
        return Isolation(False, f"{type(model).__name__} takes no position ids")
    if getattr(model.config.get_text_config(), "attention_chunk_size", None):
        return Isolation(False, f"{type(model).__name__} attends in chunks of the row, not of the segment")
    tokens = probe_tokens(model, FIRST + SECOND)
    first, second = tokens[:FIRST], tokens[FIRST:]
    positions = torch.cat([torch.arange(FIRST), torch.arange(SECOND)]).to(tokens.device)
    with evaluating(model):
        packed = body(input_ids=tokens[None], position_ids=positions[None], use_cache=False).last_hidden_state[0]
        apart = [body(input_ids=part[None], use_cache=False).last_hidden_state[0] for part in (first, second)]
    difference = (packed.float() - torch.cat(apart).float()).abs().max().item()
    size = max(part.float().abs().max().item() for part in apart)
    bound = 256 * max(torch.finfo(packed.dtype).eps, torch.finfo(torch.float32).eps) * max(size, 1e-6)
    if difference <= bound:
        return Isolation(True, f"packed and separate runs agree (difference {difference:.0e})")
    return Isolation(False, f"packed segments of {type(model).__name__} see each other (difference {difference:.2g})")
