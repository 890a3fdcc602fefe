"""Small random models of every family that is written as GGUF, each with a tokenizer beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from luthier.models.policy import save_model
from tests.chat_folders import write_tokenizer

_COMMON: dict[str, Any] = {"vocab_size": 259, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SIZES = _COMMON | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_MODERN = _SIZES | {"head_dim": 16}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": []}

MODELS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_MODERN),
    "llama, tied": lambda: LlamaConfig(**_MODERN, tie_word_embeddings=True),
    "llama, biased": lambda: LlamaConfig(**_MODERN, attention_bias=True),
    "llama, linear": lambda: LlamaConfig(**_MODERN, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    "llama, yarn": lambda: LlamaConfig(
        **_MODERN,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128},
    ),
    "llama 3": lambda: LlamaConfig(**_MODERN, rope_parameters=_LLAMA3),
    "mistral": lambda: MistralConfig(**_MODERN, sliding_window=None),
    "mixtral": lambda: MixtralConfig(**_MODERN, num_local_experts=4, num_experts_per_tok=2),
    "granite": lambda: GraniteConfig(
        **_SIZES, logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5, attention_multiplier=0.2
    ),
    "qwen2": lambda: Qwen2Config(**_SIZES),
    "qwen3": lambda: Qwen3Config(**_MODERN),
    "qwen2_moe": lambda: Qwen2MoeConfig(**_SIZES, **_MIXTURE, shared_expert_intermediate_size=64, norm_topk_prob=False),
    "qwen3_moe": lambda: Qwen3MoeConfig(**_MODERN, **_MIXTURE, norm_topk_prob=True),
    "gemma": lambda: GemmaConfig(**_MODERN, hidden_act="gelu_pytorch_tanh"),
    "gemma2": lambda: Gemma2Config(
        **_MODERN, query_pre_attn_scalar=16, sliding_window=16, final_logit_softcapping=5.0, attn_logit_softcapping=20.0
    ),
    "gemma3": lambda: Gemma3TextConfig(**(_MODERN | {"num_hidden_layers": 6}), query_pre_attn_scalar=16, sliding_window=16),
    "phi": lambda: PhiConfig(**_SIZES, partial_rotary_factor=0.5),
    "phi3": lambda: Phi3Config(**_SIZES, sliding_window=None),
    "glm": lambda: GlmConfig(**_MODERN, attention_bias=True),
    "glm4": lambda: Glm4Config(**_MODERN, attention_bias=True),
    "gpt2": lambda: GPT2Config(**_COMMON, n_embd=64, n_layer=2, n_head=4, n_positions=512),
    "bloom": lambda: BloomConfig(**_COMMON, hidden_size=64, n_layer=2, n_head=4),
    "falcon 7b": lambda: FalconConfig(
        **_COMMON, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, multi_query=True, bias=False, alibi=False
    ),
    "falcon 40b": lambda: FalconConfig(
        **_COMMON, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2,
        new_decoder_architecture=True, bias=False, alibi=False,
    ),
}  # fmt: skip
"""What to call it → its config."""


def model_folder(kind: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """A random model of a kind, whose weights are large enough that every part of it shows."""
    config = MODELS[kind]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    save_model(model.to(dtype), folder)
    return with_merges(write_tokenizer(folder))


def with_merges(folder: Path) -> Path:
    """The folder, whose tokenizer has learnt three words: llama.cpp reads none that has learnt nothing."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for left, right in (("t", "h"), ("th", "e"), ("Ġ", "the")):
        content["model"]["merges"].append([left, right])
        content["model"]["vocab"][left + right] = len(content["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
