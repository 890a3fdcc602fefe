"""Qwen, the first (2023: 1.8B, 7B, 14B, 72B) → transformers' Qwen2.

`c_attn` is queries, keys and values in three blocks, the only linear layer with a bias. Of the MLP `w1` is the plain branch and `w2` the
gate, and `intermediate_size` counts both. Beyond `seq_length` the original stretched its positions and scaled its queries when it
answered (`use_dynamic_ntk`, `use_logn_attn`), never in training; the native class does neither, and `seq_length` becomes its context.

The tokenizer is a rank file, `qwen.tiktoken`; what its code knew beyond that is in `luthier.data.tokenizer_tiktoken`.

The Int4 and Int8 checkpoints were made with AutoGPTQ, whose packed tensors lie transposed: outputs are columns. `c_attn` is cut between
them, so the native folder is a GPTQ folder of Qwen2 with the very same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.models.legacy.family import LLAMA_QKV, Config, Family, copied, default_rope
from luthier.models.legacy.mapping import Change, Rows, Rule

if TYPE_CHECKING:
    from torch import Tensor

OLD, NEW = "transformer.h.*.", "model.layers.*."


@dataclass(frozen=True)
class Columns:
    """A packed tensor [n, outputs] cut into equal blocks of columns.

    Args:
        count: how many.
    """

    count: int

    def forth(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Cut."""
        return list(tensors[0].chunk(self.count, dim=1))

    def back(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Lay the blocks side by side."""
        import torch

        return [torch.cat(list(tensors), dim=1)]


@dataclass(frozen=True)
class Copies:
    """A tensor that all parts have in common.

    Args:
        count: how many parts there are.
    """

    count: int

    def forth(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """To each its own."""
        return [tensors[0].clone() for _ in range(self.count)]

    def back(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The first stands for all."""
        return [tensors[0]]


def _head_dim(config: Config) -> int:
    return config.get("kv_channels") or config["hidden_size"] // config["num_attention_heads"]


def _native(config: Config) -> dict[str, Any]:
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "initializer_range", "quantization_config")
    return copied(config, *kept) | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_key_value_heads": config["num_attention_heads"],
        "head_dim": _head_dim(config),
        "intermediate_size": config["intermediate_size"] // 2,
        "rms_norm_eps": config["layer_norm_epsilon"],
        "rope_parameters": default_rope(config.get("rotary_emb_base", 10000)),
        "max_position_embeddings": config["seq_length"],
        "attention_dropout": config.get("attn_dropout_prob", 0.0),
        "hidden_act": "silu",
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    }


def _rules(config: Config) -> tuple[Rule, ...]:
    block = config["num_attention_heads"] * _head_dim(config)
    packed: dict[str, Change] = {"qweight": Columns(3), "qzeros": Columns(3), "scales": Columns(3), "g_idx": Copies(3)}
    return (
        Rule("transformer.wte.weight", "model.embed_tokens.weight"),
        Rule(OLD + "ln_1.weight", NEW + "input_layernorm.weight"),
        *(
            Rule(f"{OLD}attn.c_attn.{part}", tuple(name.removesuffix("*") + part for name in LLAMA_QKV), change)
            for part, change in packed.items()
        ),
        Rule(OLD + "attn.c_attn.*", LLAMA_QKV, Rows((block, block, block))),
        Rule(OLD + "attn.c_proj.*", NEW + "self_attn.o_proj.*"),
        Rule(OLD + "ln_2.weight", NEW + "post_attention_layernorm.weight"),
        Rule(OLD + "mlp.w1.*", NEW + "mlp.up_proj.*"),
        Rule(OLD + "mlp.w2.*", NEW + "mlp.gate_proj.*"),
        Rule(OLD + "mlp.c_proj.*", NEW + "mlp.down_proj.*"),
        Rule("transformer.ln_f.weight", "model.norm.weight"),
        Rule("lm_head.weight", "lm_head.weight"),
    )


def _refuse(config: Config, where: str) -> None:
    unusual = {"no_bias": True, "rotary_pct": 1.0, "scale_attn_weights": True}
    if changed := [key for key, usual in unusual.items() if config.get(key, usual) != usual]:
        raise UserError(f"a Qwen with `{changed[0]}: {config[changed[0]]}` has no native class", where=where)


QWEN = Family(
    name="qwen", recognises=lambda config: config.get("model_type") == "qwen", native=_native, rules=_rules, refuse=_refuse
)
