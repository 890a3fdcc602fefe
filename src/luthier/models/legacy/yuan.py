"""Yuan 2.0 (2023, arXiv:2311.15786; 2B, 51B, 102B) → a small class of our own (see `luthier.models.legacy.yuan_model`).

Its filter before queries and keys is in no class of transformers. Tensors keep their names and shapes; only the config changes. The
original stored the output head a second time beside the embeddings that it is tied to. Models that share weights between queries and keys
(`qk_proj`) are another architecture.

The tokens that end a question (`<sep>`) and an answer (`<eod>`), and those of code, were given to the tokenizer by whoever loaded it; here
they are part of it.
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

FILTER = "model.layers.*.self_attn.lf_gate."
SPECIAL = (
    "<eod>", "<sep>", "<pad>", "<mask>", "<predict>", "<FIM_SUFFIX>", "<FIM_PREFIX>", "<FIM_MIDDLE>", "<commit_before>", "<commit_msg>",
    "<commit_after>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<empty_output>",
)  # fmt: skip


def _native(config: Config) -> dict[str, Any]:
    return copied(config, *LLAMA_KEYS) | {
        "architectures": ["YuanForCausalLM"],
        "model_type": "luthier_yuan2",
        "num_key_value_heads": config["num_attention_heads"],
        "rope_parameters": default_rope(),
        "attention_bias": False,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", True)),
    }


def _rules(_config: Config) -> tuple[Rule, ...]:
    own = (*LLAMA_QKV, *(FILTER + part for part in ("conv1.*", "conv2.*", "output_layernorm.weight")))
    return (*LLAMA_RULES, *(Rule(name, name) for name in own))


def _buffers(config: Config) -> dict[str, Callable[[], Tensor]]:
    dimensions = config["hidden_size"] // config["num_attention_heads"]
    return {"model.layers.*.self_attn.rotary_emb.inv_freq": lambda: inverse_frequencies(dimensions)}


def _tokenizer(_config: Config) -> Added:
    return Added(names=SPECIAL, instead={"add_bos_token": False, "eos_token": "<eod>", "pad_token": "<eod>"})


YUAN = Family(
    name="yuan2",
    recognises=lambda config: config.get("model_type") == "yuan",
    native=_native,
    rules=_rules,
    buffers=_buffers,
    repeated={"lm_head.weight": "model.embed_tokens.weight"},
    tokenizer=_tokenizer,
)
