"""Do segments that lie in one row see each other? Asked of the model itself, not of its name.

Segments are laid end to end in one row with `position_ids` that restart at 0, without an attention mask and without a cache.
transformers builds a block-diagonal causal mask from such positions for most families (Llama, Qwen, GPT-2, Phi, Gemma, Mixtral,
Granite, Cohere, GLM …), but families that make their positions themselves (OPT, BLOOM and Falcon with ALiBi, MPT) or carry a
state (Mamba) let the first segment leak into the second: the logits change by whole units, and the loss still looks fine.

So, at load, a short segment is run behind two different neighbours and alone. Its hidden states must not depend on the neighbour (the
shapes are the same, so not even rounding may differ much) and must be those of the lone run to the rounding of the dtype. Where both
hold, packing is exact; where they do not, the policy pads instead, and says so.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from luthier.models.adapters.prompts import prefix_length
from luthier.models.attention import packed_row
from luthier.models.head import decoder, evaluating, probe_tokens, relative_difference
from luthier.models.linear import quantised_layers
from luthier.models.loading import reads_both_ways

FIRST, SECOND = 11, 7
"""Lengths of the neighbour and of the segment that is watched."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """The verdict.

    Attributes:
        ok: segments may share a row.
        reason: one clause for people, e.g. "packed and separate runs agree (relative difference 3e-07)".
    """

    ok: bool
    reason: str


def probe_isolation(model: PreTrainedModel) -> Isolation:
    """Run a segment packed behind two neighbours and alone, and compare its states (dropout off, no gradients)."""
    if length := prefix_length(model):
        return Isolation(False, f"each segment begins with its own prefix of {length} learnt positions")
    if reads_both_ways(model.config):
        return Isolation(False, f"tokens of {type(model).__name__} see those behind them, and a row has no end between segments")
    body = decoder(model)
    parameters = inspect.signature(body.forward).parameters
    if "position_ids" not in parameters:
        return Isolation(False, f"{type(model).__name__} takes no position ids")
    if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return Isolation(False, f"{type(model).__name__} hands no segment boundaries to its attention")
    if getattr(model.config.get_text_config(), "attention_chunk_size", None):
        return Isolation(False, f"{type(model).__name__} attends in chunks of the row, not of the segment")
    tokens = probe_tokens(model, 2 * FIRST + SECOND)
    neighbour, other, watched = tokens.split([FIRST, FIRST, SECOND])
    positions = torch.cat([torch.arange(FIRST), torch.arange(SECOND)])[None].to(tokens.device)
    bounds = torch.tensor([0, FIRST, FIRST + SECOND], dtype=torch.int32, device=tokens.device)
    with evaluating(model):
        with packed_row(bounds, FIRST) as boundaries:
            keywords = {"position_ids": positions, "use_cache": False} | boundaries
            rows = [body(input_ids=torch.cat([first, watched])[None], **keywords) for first in (neighbour, other)]
        behind = [row.last_hidden_state[0, FIRST:] for row in rows]
        alone = body(input_ids=watched[None], use_cache=False).last_hidden_state[0]
    leak, error = relative_difference(behind[1], behind[0]), relative_difference(behind[0], alone)
    epsilon = torch.finfo(torch.bfloat16 if quantised_layers(model) else alone.dtype).eps
    if leak > max(1e-5, 2 * epsilon) or error > max(1e-4, 16 * epsilon):
        return Isolation(
            False, f"packed segments of {type(model).__name__} see each other (relative difference {max(leak, error):.2g})"
        )
    return Isolation(True, f"packed and separate runs agree (relative difference {error:.0e})")
