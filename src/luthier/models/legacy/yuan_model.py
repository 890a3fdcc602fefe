"""Yuan 2.0 (IEIT, 2023, arXiv:2311.15786): a Llama whose queries and keys are made of filtered states.

transformers has no class for it, so this is model code of our own, as little as tells it from Llama:

* *Localized filtering* (LFA). Before the query and key projections two causal convolutions of width 2 run over time,

      c_t = A₀ x_{t-1} + A₁ x_t + a,      f_t = norm(B₀ c_{t-1} + B₁ c_t + b + x_t),      x_{-1} = 0,  c_{-1} = 0

  with A [H/2, H], B [H, H/2]. The value sees x itself.
* `q_proj` and `k_proj` are joined, [2H], and cut by heads into pieces of 2D: a query and a key each. So the first half of the heads has
  both from `q_proj`, the other half both from `k_proj`.
* The activation is on the other branch of the MLP: down(gate(x) · silu(up(x))).

Parameters keep their published names and shapes. The filter looks two steps back, so it must know where a segment begins: packed rows
say so through `cu_seq_lens_q`, and nothing flows over a boundary. What is padded on the left is *seen*, as by the original: pad on the
right. For decoding each layer's cache holds the last x and the last c beside the keys and values.

Left out: the original can cut attention after each `<eod>` inside a text (`reset_attention_mask`); here texts are segments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, Cache, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

FILTER_EPSILON = 1e-6
"""Of the filter's norm, whatever the config says of the others."""


class YuanConfig(LlamaConfig):
    """Llama's settings; every layer remembers two filter states besides keys and values."""

    model_type = "luthier_yuan2"
    layer_types: list[str] | None = None
    number_of_conv_states: int = 2

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.layer_types = ["hybrid"] * self.num_hidden_layers


class LocalizedFilter(nn.Module):
    """The two convolutions over time and their norm. Maps [B, T, H] to [B, T, H]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(size, size // 2, (2, 1))
        self.conv2 = nn.Conv2d(size // 2, size, (2, 1))
        self.output_layernorm = LlamaRMSNorm(size, eps=FILTER_EPSILON)

    def forward(self, states: Tensor, layer: int, cache: Cache | None, starts: Tensor | None) -> Tensor:
        """Filter `states`.

        Args:
            states: [B, T, H].
            layer: number of the layer, for its place in the cache.
            cache: what was read before, or None.
            starts: int [S], where segments begin in a packed row, or None.
        """
        inner = _two_steps(self.conv1, states, _before(states, layer, 0, cache, starts))
        outer = _two_steps(self.conv2, inner, _before(inner, layer, 1, cache, starts))
        return self.output_layernorm(outer + states)


def _two_steps(conv: nn.Conv2d, now: Tensor, before: Tensor) -> Tensor:
    """A convolution of width 2 over time as two products; its weight is [out, in, 2, 1]."""
    weight = conv.weight[..., 0]
    return functional.linear(before, weight[..., 0]) + functional.linear(now, weight[..., 1], conv.bias)


def _before(states: Tensor, layer: int, number: int, cache: Cache | None, starts: Tensor | None) -> Tensor:
    """The step before each of `states` [B, T, C]: zero where a segment begins, the cache's last step where a text goes on."""
    if cache is not None:
        known = cache.update_conv_state(states.transpose(1, 2), layer, number, conv_kernel_size=1).transpose(1, 2)
        if known.shape[1] > states.shape[1]:
            return known[:, :-1]
    shifted = functional.pad(states[:, :-1], (0, 0, 1, 0))
    return shifted if starts is None else shifted.index_fill(1, starts.long(), 0.0)


class YuanAttention(LlamaAttention):
    """Attention with filtered queries and keys, cut into heads across both projections."""

    def __init__(self, config: YuanConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.lf_gate = LocalizedFilter(config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As Llama's: [B, T, H] to [B, T, H], and the attention weights where the implementation has them."""
        batch, length, _ = hidden_states.shape
        boundaries = kwargs.get("cu_seq_lens_q")
        starts = None if boundaries is None else boundaries[:-1]
        filtered = self.lf_gate(hidden_states, self.layer_idx, past_key_values, starts)
        joined = torch.cat([self.q_proj(filtered), self.k_proj(filtered)], dim=-1).view(batch, length, -1, 2 * self.head_dim)
        query, key = (half.transpose(1, 2) for half in joined.chunk(2, dim=-1))
        value = self.v_proj(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            query, attention_mask = _blind_rows_see_all_alike(query, attention_mask)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(output.reshape(batch, length, -1).contiguous()), weights


def _blind_rows_see_all_alike(query: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Give queries of padding, which may see nothing, the mean of all values, as the original did: the filter carries it on.

    Args:
        query: [B, heads, T, D].
        mask: bool [B, 1, T, K], True where a key is seen.
    """
    blind = ~mask.any(-1, keepdim=True)
    return query.masked_fill(blind, 0.0), mask | blind


class YuanMLP(LlamaMLP):
    """The gated MLP with its activation on `up_proj`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., H] to [..., H]."""
        return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))


class YuanForCausalLM(LlamaForCausalLM):
    """Llama with these two in each layer."""

    config_class = YuanConfig

    def __init__(self, config: YuanConfig) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            layer.self_attn, layer.mlp = YuanAttention(config, number), YuanMLP(config)
        self.post_init()


AutoConfig.register(YuanConfig.model_type, YuanConfig, exist_ok=True)
AutoModelForCausalLM.register(YuanConfig, YuanForCausalLM, exist_ok=True)
