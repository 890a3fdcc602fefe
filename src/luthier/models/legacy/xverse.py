"""XVERSE 7B, 13B and 65B (2023) → Llama: a Llama under another name. The stored rotary frequencies are dropped.

The tokenizer is a `tokenizer.json`, read as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from luthier.models.legacy.family import (
    LLAMA_KEYS,
    LLAMA_QKV,
    LLAMA_RULES,
    Config,
    Family,
    copied,
    default_rope,
    inverse_frequencies,
)
from luthier.models.legacy.mapping import Rule

if TYPE_CHECKING:
    from torch import Tensor


def _native(config: Config) -> dict[str, Any]:
    return copied(config, *LLAMA_KEYS) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_parameters": default_rope(config.get("rope_theta", 10000)),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def _buffers(config: Config) -> dict[str, Callable[[], Tensor]]:
    dimensions = config["hidden_size"] // config["num_attention_heads"]
    return {"model.layers.*.self_attn.rotary_emb.inv_freq": lambda: inverse_frequencies(dimensions)}


XVERSE = Family(
    name="xverse",
    recognises=lambda config: config.get("model_type") == "xverse",
    native=_native,
    rules=lambda _config: (*LLAMA_RULES, *(Rule(name, name) for name in LLAMA_QKV)),
    buffers=_buffers,
)
