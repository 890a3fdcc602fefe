"""Small random models of the families that Luthier is tested on: a few layers, vocabulary 256, hidden size 64.

Llama alone proves little. The families differ where fine-tuning code tends to be wrong: learned or ALiBi positions (GPT-2, OPT,
BLOOM), transposed weights (GPT-2's `Conv1D`), soft-capped logits (Gemma-2), scaled logits (Granite, Cohere), a biased head (Phi),
experts (Mixtral, DeepSeek-V3), compressed keys and values (DeepSeek-V3),
per-head norms (Qwen3), partial rotary positions (GLM), fused query-key-value (BLOOM, Falcon, GPT-2, Phi-3-like).

    model = build("gemma2", seed=0)          # float32, eval mode, on the CPU
    folder = save("llama", tmp_path)         # the same as a transformers folder

The weights are drawn larger than an initialisation (σ = 0.1), so that attention is not flat and a leak between segments shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCAB, HIDDEN, LAYERS, HEADS = 256, 64, 2, 4

_COMMON: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_MODERN: dict[str, Any] = _COMMON | {
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}


def _llama() -> PreTrainedConfig:
    from transformers import LlamaConfig

    return LlamaConfig(**_MODERN)


def _gpt2() -> PreTrainedConfig:
    from transformers import GPT2Config

    return GPT2Config(**_COMMON, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=512)


def _bloom() -> PreTrainedConfig:
    from transformers import BloomConfig

    return BloomConfig(**_COMMON, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS)


def _gemma2() -> PreTrainedConfig:
    from transformers import Gemma2Config

    return Gemma2Config(
        **_MODERN, final_logit_softcapping=5.0, attn_logit_softcapping=20.0, query_pre_attn_scalar=16, sliding_window=16
    )


def _mixtral() -> PreTrainedConfig:
    from transformers import MixtralConfig

    return MixtralConfig(**_MODERN, num_local_experts=4, num_experts_per_tok=2)


def _qwen3_moe() -> PreTrainedConfig:
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(**_MODERN, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, mlp_only_layers=[])


def _qwen2_moe() -> PreTrainedConfig:
    from transformers import Qwen2MoeConfig

    shared = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "mlp_only_layers": [0]}
    fields = {key: value for key, value in _MODERN.items() if key != "head_dim"}
    return Qwen2MoeConfig(**fields, **shared, num_experts=4, num_experts_per_tok=2)


def _gpt_oss() -> PreTrainedConfig:
    from transformers import GptOssConfig

    return GptOssConfig(**_MODERN, num_local_experts=4, num_experts_per_tok=2, sliding_window=16)


def _granite() -> PreTrainedConfig:
    from transformers import GraniteConfig

    return GraniteConfig(
        **_MODERN, logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5, attention_multiplier=0.2
    )


def _qwen3() -> PreTrainedConfig:
    from transformers import Qwen3Config

    return Qwen3Config(**_MODERN)


def _glm() -> PreTrainedConfig:
    from transformers import GlmConfig

    return GlmConfig(**_MODERN)


def _opt() -> PreTrainedConfig:
    from transformers import OPTConfig

    return OPTConfig(
        **_COMMON,
        hidden_size=HIDDEN,
        ffn_dim=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=512,
        word_embed_proj_dim=HIDDEN,
    )


def _falcon() -> PreTrainedConfig:
    from transformers import FalconConfig

    return FalconConfig(**_COMMON, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, alibi=True)


def _phi() -> PreTrainedConfig:
    from transformers import PhiConfig

    return PhiConfig(**{key: value for key, value in _MODERN.items() if key != "head_dim"})


def _cohere() -> PreTrainedConfig:
    from transformers import CohereConfig

    return CohereConfig(**{key: value for key, value in _MODERN.items() if key != "head_dim"}, logit_scale=0.25)


def _deepseek() -> PreTrainedConfig:
    from transformers import DeepseekV3Config

    return DeepseekV3Config(
        **_COMMON,
        hidden_size=HIDDEN,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=LAYERS,
        first_k_dense_replace=1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        q_lora_rank=32,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        max_position_embeddings=512,
    )


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": _llama,
    "gpt2": _gpt2,
    "bloom": _bloom,
    "gemma2": _gemma2,
    "mixtral": _mixtral,
    "granite": _granite,
    "qwen3": _qwen3,
    "glm": _glm,
    "opt": _opt,
    "falcon": _falcon,
    "phi": _phi,
    "cohere": _cohere,
    "deepseek": _deepseek,
}
"""Family name → its small config."""

MIXTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "mixtral": _mixtral,
    "deepseek": _deepseek,
    "qwen3_moe": _qwen3_moe,
    "qwen2_moe": _qwen2_moe,
    "gpt_oss": _gpt_oss,
}
"""Families with experts: beside a dense layer, beside shared experts, with biases, stored the other way round."""

MATRIX = ("llama", "gpt2", "bloom", "gemma2", "mixtral", "granite", "qwen3", "glm")
"""The families that every promise is proved on."""


def build(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a family, float32 in eval mode; `changes` overwrite fields of its config."""
    config = (CONFIGS | MIXTURES)[family]()
    if changes:
        fields = config.to_dict() | changes
        if "layer_types" not in changes:
            fields.pop("layer_types", None)  # follows from the others
        config = type(config).from_dict(fields)
    config.use_cache = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # vectors keep a part of their initialisation, which may be random (sinks)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model.eval()


def save(family: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """The same model as a transformers folder (config and safetensors, no tokenizer)."""
    build(family, seed=seed, **changes).save_pretrained(folder)
    return folder
