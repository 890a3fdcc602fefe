"""Which families can be written, and what is particular about each: one entry of `FAMILIES` for a `model_type` of transformers.

Names of tensors are those that the `gguf` package maps; an entry says under which architecture, which tensors are rearranged
(`luthier.export.gguf.layouts`), which settings are added to the common ones, and what llama.cpp cannot compute. A model that it would
compute in another way is refused; one that it computes alike only up to some length is written, and that is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError, did_you_mean
from luthier.export.gguf.layouts import Flat, GroupsApart, HeadsApart, Layout, Paired, Same, Shifted, Transposed
from luthier.export.gguf.settings import common, context, head_size, rope_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Settings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """How models of one `model_type` are written.

    Attributes:
        architecture: its name in llama.cpp.
        layouts: pattern of a tensor's name in the folder → how it is laid out, given the config; the first that fits.
        settings: besides the common ones, or in their place.
        refused: what is wrong with a config, in one clause, or None.
        notes: what the user should know.
        head: llama.cpp asks for an output matrix even where it is that of the embeddings.
    """

    architecture: str
    layouts: Mapping[str, Callable[[PreTrainedConfig], Layout]] = field(default_factory=dict)
    settings: Callable[[PreTrainedConfig], Settings] = lambda config: {}
    refused: Callable[[PreTrainedConfig], str | None] = lambda config: None
    notes: Callable[[PreTrainedConfig], list[str]] = lambda config: []
    head: bool = False

    def layout(self, key: str, config: PreTrainedConfig) -> Layout:
        """How a tensor is laid out."""
        return next((make(config) for pattern, make in self.layouts.items() if re.search(pattern, key)), Same())


def family_of(config: PreTrainedConfig, where: str) -> Family:
    """The family of a model.

    Args:
        config: of the model.
        where: for the message.

    Raises:
        UserError: it is none that can be written.
    """
    kind = str(config.model_type)
    if kind not in FAMILIES:
        hint = f"Families that can be: {', '.join(sorted(FAMILIES))}. {did_you_mean(kind, FAMILIES)}"
        raise UserError(f"models of type `{kind}` cannot be written as GGUF", where=where, hint=hint)
    family = FAMILIES[kind]
    if reason := family.refused(config):
        raise UserError(f"llama.cpp computes this model in another way: {reason}", where=where, hint="Serve it with Luthier.")
    return family


def settings_of(family: Family, config: PreTrainedConfig) -> Settings:
    """All settings of a model, by the name of the writer's method."""
    return common(config) | family.settings(config)


def _window(config: PreTrainedConfig) -> list[str]:
    window = getattr(config, "sliding_window", None)
    if not window or window >= context(config) or getattr(config, "use_sliding_window", True) is False:
        return []
    return [
        f"attention reaches back {window} tokens in this model and without limit in llama.cpp: longer texts are read otherwise"
    ]


def _odd_scale(config: PreTrainedConfig) -> str | None:
    scale, head = config.query_pre_attn_scalar, head_size(config)
    large = config.num_hidden_layers in (46, 62)  # llama.cpp knows the largest by their layers, and their scale
    if scale == head or (large and scale == config.hidden_size // config.num_attention_heads):
        return None
    return f"scores are divided by the root of {scale}, not of the head's {head}"


def _soft_caps(config: PreTrainedConfig) -> Settings:
    caps = {"attn_logit_softcapping": config.attn_logit_softcapping, "final_logit_softcapping": config.final_logit_softcapping}
    return {name: cap for name, cap in caps.items() if cap is not None}


def _gemma3(config: PreTrainedConfig) -> Settings:
    near = (config.rope_parameters or {}).get("sliding_attention", {})
    found: Settings = {"rope_freq_base_swa": float(near["rope_theta"])} if near else {}
    return _soft_caps(config) | found | {"sliding_window": config.sliding_window}


def _gemma3_refused(config: PreTrainedConfig) -> str | None:
    usual = all((kind == "full_attention") == (number % 6 == 5) for number, kind in enumerate(config.layer_types))
    return _odd_scale(config) or (None if usual else "its layers with a view of everything are not each sixth one")


def _granite(config: PreTrainedConfig) -> Settings:
    return {
        "attention_scale": config.attention_multiplier,
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }


def _falcon_refused(config: PreTrainedConfig) -> str | None:
    if config.alibi:
        return "it knows positions by ALiBi, where llama.cpp turns"
    if config.bias or not (config.parallel_attn or config.new_decoder_architecture):
        return "it has biases, or its two parts follow one another"
    return None


def _falcon_groups(config: PreTrainedConfig) -> int:
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


def _phi3(config: PreTrainedConfig) -> Settings:
    first = rope_of(config).get("original_max_position_embeddings") or context(config)
    return {"sliding_window": config.sliding_window or 0, "rope_scaling_orig_ctx_len": int(first)}


def _gpt2_refused(config: PreTrainedConfig) -> str | None:
    odd = config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights or config.activation_function != "gelu_new"
    return "it scales attention or bends activations in a way of its own" if odd else None


def _sizes_of_experts(config: PreTrainedConfig) -> Settings:
    found = {"expert_feed_forward_length": config.moe_intermediate_size}
    if shared := getattr(config, "shared_expert_intermediate_size", None):
        found["expert_shared_feed_forward_length"] = shared
    return found


def _dense_between(config: PreTrainedConfig) -> str | None:
    """Mixtures whose layers are not all alike, or whose shares do not add up to 1 where llama.cpp makes them."""
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        return "some of its layers have no experts"
    renormalised = config.model_type == "qwen3_moe"
    if bool(config.norm_topk_prob) != renormalised:
        return "the shares of its experts " + ("do not add up to 1" if renormalised else "are made to add up to 1")
    return None


_PAIRED = {
    r"self_attn\.q_proj\.": lambda config: Paired(config.num_attention_heads),
    r"self_attn\.k_proj\.": lambda config: Paired(config.num_key_value_heads or config.num_attention_heads),
}
_SHIFTED = {r"norm\.weight$": lambda config: Shifted()}
_GPT2 = {r"(c_attn|c_proj|c_fc)\.weight$": lambda config: Transposed()}

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", _PAIRED),
    "mistral": Family("llama", _PAIRED, notes=_window),
    "mixtral": Family("llama", _PAIRED, notes=_window),
    "granite": Family("granite", _PAIRED, _granite),
    "qwen2": Family("qwen2", notes=_window),
    "qwen3": Family("qwen3", notes=_window),
    "qwen2_moe": Family(
        "qwen2moe",
        {r"shared_expert_gate\.weight$": lambda config: Flat()},
        settings=_sizes_of_experts,
        refused=_dense_between,
        notes=_window,
        head=True,
    ),
    "qwen3_moe": Family("qwen3moe", settings=_sizes_of_experts, refused=_dense_between, notes=_window),
    "gemma": Family("gemma", _SHIFTED),
    "gemma2": Family(
        "gemma2", _SHIFTED, lambda config: _soft_caps(config) | {"sliding_window": config.sliding_window}, refused=_odd_scale
    ),
    "gemma3_text": Family("gemma3", _SHIFTED, _gemma3, refused=_gemma3_refused),
    "phi": Family("phi2", refused=lambda config: "queries and keys are normed" if config.qk_layernorm else None, head=True),
    "phi3": Family("phi3", settings=_phi3),
    "glm": Family("chatglm"),
    "glm4": Family("glm4"),
    "gpt2": Family("gpt2", _GPT2, refused=_gpt2_refused),
    "bloom": Family(
        "bloom",
        {r"query_key_value\.": lambda config: HeadsApart(config.num_attention_heads)},
        lambda config: {"head_count_kv": config.num_attention_heads},
    ),
    "falcon": Family(
        "falcon",
        {r"query_key_value\.": lambda config: GroupsApart(config.num_attention_heads, _falcon_groups(config))},
        lambda config: {"head_count_kv": _falcon_groups(config), "tensor_data_layout": "jploski"},
        refused=_falcon_refused,
    ),
}
"""`model_type` → how it is written."""
