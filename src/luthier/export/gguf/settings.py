"""What a GGUF file says of a model besides its weights: sizes, rotations, norms.

A setting is the name of a method of `gguf.GGUFWriter` without its `add_`, which knows the key and the type: `head_count` is written as
`llama.attention.head_count`, uint32. Values come from the config as transformers reads it, so defaults that a `config.json` leaves out
are there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from luthier.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FACTORS = "rope_freqs.weight"
"""Tensor of what each rotation's frequency is divided by."""
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
"""The same, for texts beyond and within the length that the model was first trained on."""


def common(config: PreTrainedConfig) -> dict[str, Any]:
    """What most architectures are asked for."""
    heads = config.num_attention_heads
    head = head_size(config)
    found: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "block_count": config.num_hidden_layers,
        "context_length": context(config),
        "embedding_length": config.hidden_size,
        "feed_forward_length": inner_size(config),
        "head_count": heads,
        "head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "key_length": head,
        "value_length": head,
    }
    if (epsilon := getattr(config, "rms_norm_eps", None)) is not None:
        found["layer_norm_rms_eps"] = epsilon
    for name in ("layer_norm_eps", "layer_norm_epsilon"):
        if (epsilon := getattr(config, name, None)) is not None:
            found["layer_norm_eps"] = epsilon
    return found | rotation(config) | experts(config)


def head_size(config: PreTrainedConfig) -> int:
    """Numbers in the query of one head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def inner_size(config: PreTrainedConfig) -> int:
    """Numbers between the two matrices of a feed-forward layer; four times the hidden size where the config is silent."""
    for name in ("intermediate_size", "ffn_hidden_size", "n_inner"):
        if value := getattr(config, name, None):
            return int(value)
    return 4 * int(config.hidden_size)


def context(config: PreTrainedConfig) -> int:
    """The longest text; BLOOM, whose positions have no end, names the one that it was trained on."""
    for name in ("max_position_embeddings", "seq_length"):
        if value := getattr(config, name, None):
            return int(value)
    return 2048


def rotation(config: PreTrainedConfig) -> dict[str, Any]:
    """Rotary positions: how many numbers of a head are turned, how fast, and how the angles are stretched.

    Raises:
        UserError: llama.cpp has no such stretching.
    """
    rope = rope_of(config)
    if not rope:
        return {}
    share = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None)) or 1.0
    found: dict[str, Any] = {"rope_dimension_count": int(head_size(config) * share), "rope_freq_base": float(rope["rope_theta"])}
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        found |= {"rope_scaling_type": _scaling(kind), "rope_scaling_factor": float(rope["factor"])}
    if kind == "yarn":
        first = rope.get("original_max_position_embeddings") or round(context(config) / rope["factor"])
        found["rope_scaling_orig_ctx_len"] = int(first)
        names = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
        found |= {f"rope_scaling_{to}": float(rope[name]) for name, to in names.items() if rope.get(name) is not None}
    if kind == "longrope":
        first = int(rope["original_max_position_embeddings"])
        ratio = context(config) / first
        found |= {"rope_scaling_type": _scaling(kind), "rope_scaling_orig_ctx_len": first}
        found["rope_scaling_attn_factors"] = math.sqrt(1 + math.log(ratio) / math.log(first)) if ratio > 1 else 1.0
    if kind not in ("default", "linear", "yarn", "llama3", "longrope"):
        raise UserError(f"llama.cpp does not stretch positions by `{kind}`", where="rope_scaling", hint="Use `linear` or `yarn`.")
    return found


def rotation_tensors(config: PreTrainedConfig) -> dict[str, Tensor]:
    """Factors of the single frequencies, where a model has them: name in the GGUF file → float32."""
    rope = rope_of(config)
    kind = rope.get("rope_type", "default")
    if kind == "longrope":
        return {LONG: torch.tensor(rope["long_factor"]).float(), SHORT: torch.tensor(rope["short_factor"]).float()}
    if kind != "llama3":
        return {}
    size = head_size(config)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2).float() / size)
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return {FACTORS: plain / stretched.float()}


def rope_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The rotary settings; of a model that has them apart for each kind of layer, those of layers that see everything."""
    rope = getattr(config, "rope_parameters", None) or {}
    return dict(rope.get("full_attention", rope))


def experts(config: PreTrainedConfig) -> dict[str, Any]:
    """How many experts there are, and how many answer for one token."""
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    return {"expert_count": count, "expert_used_count": config.num_experts_per_tok} if count else {}


def _scaling(kind: str) -> Any:
    import gguf

    return gguf.RopeScalingType[kind.upper()]
