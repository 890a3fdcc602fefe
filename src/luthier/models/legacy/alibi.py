r"""A Llama whose positions are ALiBi (Press et al. 2021, arXiv:2108.12409): the body of the two Baichuan 13B.

No vector is rotated. Instead each head h looks back with a penalty that grows with the distance,

    score[h, i, j] = q_i · k_j / √d - s_h · (i - j)          for j ≤ i

with slopes s_h that form a geometric series. transformers has ALiBi in BLOOM, MPT and Falcon, none of which has Llama's norms and MLP.
Names of modules and parameters are Llama's, so whatever works on a Llama works here.

The penalty depends on distances alone, so padding on the left shifts nothing, and a packed row is computed segment by segment. The
[heads, L, L] matrix of penalties lives for one layer at a time; FlashAttention cannot take one.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention


class AlibiLlamaConfig(LlamaConfig):
    """Llama's config; `rope_parameters` mean nothing here."""

    model_type = "luthier_alibi_llama"


class AlibiAttention(LlamaAttention):
    """Attention with ALiBi in place of rotary positions."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        cu_seq_lens_q: Tensor | None = None,
        **_rest: Any,
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            hidden_states: [B, T, H].
            position_embeddings: always None.
            attention_mask: [B, 1, T, K], True (or 0) where a key is seen; None for plain causal attention.
            past_key_values: the cache of earlier keys and values.
            cu_seq_lens_q: int32 [S + 1], boundaries of the segments of a packed row (B = 1).
        """
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (project(hidden_states).view(shape).transpose(1, 2) for project in projections)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        dropout = self.attention_dropout if self.training else 0.0
        if cu_seq_lens_q is None:
            mixed = alibi_attention(query, key, value, attention_mask, dropout)
        else:
            lengths = torch.diff(cu_seq_lens_q).tolist()
            segments = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
            mixed = torch.cat([alibi_attention(q, k, v, None, dropout) for q, k, v in segments], dim=2)
        return self.o_proj(mixed.transpose(1, 2).reshape(*hidden_states.shape[:-1], -1)), None


class AlibiLlamaForCausalLM(LlamaForCausalLM):
    """Llama with ALiBi."""

    config_class = AlibiLlamaConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: AlibiLlamaConfig) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            layer.self_attn = AlibiAttention(config, number)
        self.model.rotary_emb = _NoRotation()
        self.post_init()


class _NoRotation(nn.Module):
    """Stands where a Llama computes its rotations."""

    def forward(self, *_states: Tensor, **_rest: Tensor) -> None:
        """Nothing."""


def alibi_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Causal attention with ALiBi.

    Args:
        query: [B, heads, T, d]; the last T of the K positions.
        key: [B, heads, K, d].
        value: as `key`.
        mask: [B, 1, T, K], True where a key is seen, or a number of which 0 says so; None where all up to the query itself are.
        dropout: of attention weights.

    Returns:
        [B, heads, T, d].
    """
    queries, keys = query.shape[2], key.shape[2]
    place = torch.arange(keys, device=query.device)
    behind = place[keys - queries :, None] - place[None, :]
    if mask is None:
        seen = behind >= 0
    else:
        seen = mask if mask.dtype == torch.bool else mask == 0
    slopes = _slopes(query.shape[1], query.device)
    penalty = (-slopes[:, None, None] * behind).to(query.dtype)
    bias = penalty[None].masked_fill(~seen, torch.finfo(query.dtype).min)
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)


@cache
def _slopes(heads: int, device: torch.device) -> Tensor:
    return torch.tensor(slopes(heads), device=device)


def slopes(heads: int) -> list[float]:
    """The penalty of a step back for each head.

    For n a power of two: s, s², …, sⁿ with s = 2^(-8/n). Otherwise those of the next lower power m, and then every second one of 2m.
    """
    whole = 2 ** int(math.log2(heads))
    first = [2 ** (-8 * number / whole) for number in range(1, whole + 1)]
    between = [2 ** (-4 * number / whole) for number in range(1, 2 * whole + 1, 2)]
    return (first + between)[:heads]


AutoConfig.register(AlibiLlamaConfig.model_type, AlibiLlamaConfig, exist_ok=True)
AutoModelForCausalLM.register(AlibiLlamaConfig, AlibiLlamaForCausalLM, exist_ok=True)
