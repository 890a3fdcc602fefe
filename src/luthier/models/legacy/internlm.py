"""InternLM 7B and 20B, the first generation (2023) → Llama, with biases in its attention where the config says so.

Names are Llama's. `rotary: {base, type}` says how positions go on beyond the trained length: `origin` not at all, `dynamic` by
frequencies that follow the length of the input (NTK), which transformers knows under the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from luthier.models.legacy.family import (
    LLAMA_KEYS,
    LLAMA_QKV,
    LLAMA_RULES,
    Added,
    Config,
    Family,
    copied,
    default_rope,
    inverse_frequencies,
)
from luthier.models.legacy.mapping import Rule

if TYPE_CHECKING:
    from torch import Tensor


def _rope(config: Config) -> dict[str, Any]:
    rotary = config.get("rotary") or {}
    plain = default_rope(rotary.get("base", 10000))
    if rotary.get("type") != "dynamic":
        return plain
    return plain | {"rope_type": "dynamic", "factor": float(rotary.get("scaling_factor", 1.0))}


def _native(config: Config) -> dict[str, Any]:
    return copied(config, *LLAMA_KEYS) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": bool(config.get("bias", True)),
        "rope_parameters": _rope(config),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def _buffers(config: Config) -> dict[str, Callable[[], Tensor]]:
    dimensions, base = config["hidden_size"] // config["num_attention_heads"], _rope(config)["rope_theta"]
    return {"model.layers.*.self_attn.rotary_emb.inv_freq": lambda: inverse_frequencies(dimensions, base)}


INTERNLM = Family(
    name="internlm",
    recognises=lambda config: config.get("model_type") == "internlm",
    native=_native,
    rules=lambda _config: (*LLAMA_RULES, *(Rule(name, name) for name in LLAMA_QKV)),
    buffers=_buffers,
    tokenizer=lambda _config: Added(config={"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}),
)
