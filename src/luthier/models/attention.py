"""Attention within segments: what a packed row needs, without computing the rest of the square.

Segments laid end to end in one row of T tokens attend only to themselves, Σ L² pairs. transformers' SDPA path computes all T² of them
under a block-diagonal mask, which on a CPU makes long rows of short segments two to three times as slow as they need be
(`benchmarks/attention.py`). Here the row is cut at the segment boundaries, causal SDPA runs on each piece, and the pieces are laid
end to end again. No mask is ever built. In bfloat16 on a CPU the pieces go through a kernel with a faster backward pass
(`luthier.kernels.attention`).

It is registered with transformers under `NAME`, the way its docs describe for attention of one's own. Boundaries travel as the keyword
`cu_seq_lens_q` that packed FlashAttention uses, so models hand them down to every layer, and activation checkpointing repeats them.
Without that keyword (generation with a cache, padded batches) it is transformers' SDPA, masks and all. Whether a model really hands
the keyword down is for the probe to find out (`luthier.models.probe`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from luthier.kernels.attention import segment_attention as bfloat16_attention

NAME = "luthier_segments"
"""Under this name transformers knows it."""

_packed: ContextVar[bool] = ContextVar("packed", default=False)


@contextmanager
def packed_row(cu_seqlens: Tensor, longest: int) -> Iterator[dict[str, Any]]:
    """Keywords for a model's forward pass over one packed row; inside the block no mask is built.

    Args:
        cu_seqlens: int32 [S + 1], segment boundaries.
        longest: tokens of the longest segment.
    """
    token = _packed.set(True)
    try:
        yield {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens, "max_length_q": longest, "max_length_k": longest}
    finally:
        _packed.reset(token)


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each segment of a row with itself.

    Args:
        module: the attention layer.
        query: [1, heads, T, D].
        key: [1, key-value heads, T, D].
        value: as `key`.
        attention_mask: None for a packed row.
        dropout: of attention weights.
        scaling: of scores; default 1/√D.
        sliding_window: positions, the token itself included, that a token sees.
        cu_seq_lens_q: int32 [S + 1], segment boundaries; without it this is transformers' SDPA attention.
        rest: other keywords of transformers' attention functions.

    Returns:
        [1, T, heads, D], and None for the attention weights.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest)
    lengths = torch.diff(cu_seq_lens_q).tolist()
    if query.dtype == torch.bfloat16 and query.is_cpu and not dropout and max(lengths) <= (sliding_window or math.inf):
        scale = scaling or query.shape[-1] ** -0.5
        return bfloat16_attention(query[0], key[0], value[0], lengths, scale)[None], None
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    pieces = [
        _causal(q, k, v, dropout, scaling, sliding_window)
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _causal(query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None) -> Tensor:
    length = query.shape[2]
    if window is None or length <= window:
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, scale=scaling)
    position = torch.arange(length, device=query.device)
    distance = position[:, None] - position[None, :]
    seen = (distance >= 0) & (distance < window)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout, scale=scaling)


def _mask(*arguments: Any, **keywords: Any) -> Tensor | None:
    """No mask inside `packed_row`; else the one that SDPA takes."""
    return None if _packed.get() else sdpa_mask(*arguments, **keywords)


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, _mask)
