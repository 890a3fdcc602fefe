"""ChatGLM2 and ChatGLM3 (2023) → transformers' GLM.

The native class is the one of GLM-4, which came of the same code: groups of queries share keys and values, biases on these three
alone, rotary positions on the first half of each head with adjacent pairs, gate and up in one matrix. Nothing is permuted; only the fused
queries, keys and values are cut apart. What differs are numbers in the config: the defaults of the class are GLM-4's.

`rope_ratio` (ChatGLM3-6B-32K and the first GLM-4-9B files) multiplies the rotary base. The first ChatGLM-6B is another architecture,
with other positions and attention both ways over the prompt.

The five special tokens after the vocabulary (nine in ChatGLM3, with those of the roles) stood in the tokenizer's code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.models.legacy.family import Added, Config, Family, copied, default_rope, inverse_frequencies
from luthier.models.legacy.mapping import Rows, Rule

if TYPE_CHECKING:
    from torch import Tensor

OLD, NEW = "transformer.encoder.layers.*.", "model.layers.*."
VOCABULARY = 64789
"""Pieces in the SentencePiece model of ChatGLM2 and ChatGLM3; the special tokens are numbered on from here."""
OWN_VOCABULARY = 65024
"""Entries in the embeddings of ChatGLM2 and ChatGLM3; GLM-4 has another tokenizer, and more."""
SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def _groups(config: Config) -> int:
    """Heads of keys and values."""
    return config["multi_query_group_num"] if config.get("multi_query_attention") else config["num_attention_heads"]


def _head_dim(config: Config) -> int:
    return config.get("kv_channels") or config["hidden_size"] // config["num_attention_heads"]


def _native(config: Config) -> dict[str, Any]:
    return copied(
        config, "hidden_size", "num_attention_heads", "attention_dropout", "pad_token_id", "eos_token_id", "bos_token_id"
    ) | {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "vocab_size": config["padded_vocab_size"],
        "intermediate_size": config["ffn_hidden_size"],
        "num_hidden_layers": config["num_layers"],
        "num_key_value_heads": _groups(config),
        "head_dim": _head_dim(config),
        "rms_norm_eps": config["layernorm_epsilon"],
        "attention_bias": bool(config.get("add_qkv_bias") or config.get("add_bias_linear")),
        "max_position_embeddings": config["seq_length"],
        "rope_parameters": default_rope(10000 * config.get("rope_ratio", 1)) | {"partial_rotary_factor": 0.5},
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def _rules(config: Config) -> tuple[Rule, ...]:
    width, group = config["num_attention_heads"] * _head_dim(config), _groups(config) * _head_dim(config)
    return (
        Rule("transformer.embedding.word_embeddings.weight", "model.embed_tokens.weight"),
        Rule(OLD + "input_layernorm.weight", NEW + "input_layernorm.weight"),
        Rule(
            OLD + "self_attention.query_key_value.*",
            tuple(f"{NEW}self_attn.{part}_proj.*" for part in "qkv"),
            Rows((width, group, group)),
        ),
        Rule(OLD + "self_attention.dense.*", NEW + "self_attn.o_proj.*"),
        Rule(OLD + "post_attention_layernorm.weight", NEW + "post_attention_layernorm.weight"),
        Rule(OLD + "mlp.dense_h_to_4h.*", NEW + "mlp.gate_up_proj.*"),
        Rule(OLD + "mlp.dense_4h_to_h.*", NEW + "mlp.down_proj.*"),
        Rule("transformer.encoder.final_layernorm.weight", "model.norm.weight"),
        Rule("transformer.output_layer.weight", "lm_head.weight"),
    )


def _buffers(config: Config) -> dict[str, Callable[[], Tensor]]:
    return {"transformer.rotary_pos_emb.inv_freq": lambda: inverse_frequencies(_head_dim(config) // 2)}


def _tokenizer(config: Config) -> Added:
    if config["padded_vocab_size"] > OWN_VOCABULARY:
        return Added()
    second = "chatglm2" in str(config.get("_name_or_path", "")).lower()
    names = SPECIAL if second else SPECIAL + ROLES
    return Added(
        {name: VOCABULARY + number for number, name in enumerate(names)},
        {"add_bos_token": False, "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"},
    )


def _refuse(config: Config, where: str) -> None:
    if "padded_vocab_size" not in config:
        raise UserError(
            "the first ChatGLM-6B is another architecture, which transformers does not have",
            where=where,
            hint="ChatGLM2, ChatGLM3 and GLM-4 work.",
        )
    unusual = {
        "add_bias_linear": False, "apply_residual_connection_post_layernorm": False, "rmsnorm": True, "post_layer_norm": True,
    }  # fmt: skip
    if changed := [key for key, usual in unusual.items() if config.get(key, usual) != usual]:
        raise UserError(f"a ChatGLM with `{changed[0]}: {config[changed[0]]}` has no native class", where=where)


CHATGLM = Family(
    name="chatglm",
    recognises=lambda config: config.get("model_type") == "chatglm",
    native=_native,
    rules=_rules,
    buffers=_buffers,
    tokenizer=_tokenizer,
    refuse=_refuse,
)
