"""InternLM2 and InternLM2.5 (2024) → transformers' Llama.

Queries, keys and values are one matrix whose rows come group by group: the queries that share a key and a value, that key, that value.

    wqkv [G · (H/G + 2) · d, h]  =  for each of G groups: H/G queries, a key, a value, each of d rows

Rotary positions change with the length of a text beyond `max_position_embeddings` ("dynamic NTK"), natively too. One difference is left:
after a longer text the original kept its stretched positions for the shorter ones that followed; the native class goes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.models.legacy.family import LLAMA_KEYS, LLAMA_QKV, Added, Config, Family, copied, default_rope
from luthier.models.legacy.mapping import Rule

if TYPE_CHECKING:
    from torch import Tensor

LAYER = "model.layers.*."
VOCABULARY = 92544
"""Entries of the published vocabulary. Its last pieces, `[UNUSED_TOKEN_…]`, are the special tokens of dialogues."""
SPECIAL = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")


@dataclass(frozen=True)
class Groups:
    """Rows that come in groups, each with a stretch of every part: [groups · Σ sizes, …] ↔ a tensor [groups · size, …] for each part.

    Args:
        groups: how many there are.
        sizes: rows of each part in a group.
    """

    groups: int
    sizes: tuple[int, ...]

    def forth(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sort the rows by part."""
        grouped = tensors[0].unflatten(0, (self.groups, sum(self.sizes)))
        return [part.flatten(0, 1) for part in grouped.split(self.sizes, dim=1)]

    def back(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sort the rows by group again."""
        import torch

        return [torch.cat([part.unflatten(0, (self.groups, -1)) for part in tensors], dim=1).flatten(0, 1)]


def _native(config: Config) -> dict[str, Any]:
    scaling = config.get("rope_scaling") or {}
    rope = default_rope(config.get("rope_theta", 10000))
    if kind := scaling.get("type") or scaling.get("rope_type"):
        rope |= {"rope_type": kind, "factor": float(scaling["factor"])}
    return copied(config, *LLAMA_KEYS, "num_key_value_heads") | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": bool(config.get("bias", False)),
        "rope_parameters": rope,
        "tie_word_embeddings": False,
    }


def _rules(config: Config) -> tuple[Rule, ...]:
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    size = config["hidden_size"] // heads
    return (
        Rule("model.tok_embeddings.weight", "model.embed_tokens.weight"),
        Rule(LAYER + "attention_norm.weight", LAYER + "input_layernorm.weight"),
        Rule(LAYER + "attention.wqkv.*", LLAMA_QKV, Groups(groups, (heads // groups * size, size, size))),
        Rule(LAYER + "attention.wo.*", LAYER + "self_attn.o_proj.*"),
        Rule(LAYER + "ffn_norm.weight", LAYER + "post_attention_layernorm.weight"),
        Rule(LAYER + "feed_forward.w1.*", LAYER + "mlp.gate_proj.*"),
        Rule(LAYER + "feed_forward.w3.*", LAYER + "mlp.up_proj.*"),
        Rule(LAYER + "feed_forward.w2.*", LAYER + "mlp.down_proj.*"),
        Rule("model.norm.weight", "model.norm.weight"),
        Rule("output.weight", "lm_head.weight"),
    )


def _tokenizer(config: Config) -> Added:
    published = config["vocab_size"] == VOCABULARY
    return Added(
        tokens={name: VOCABULARY - len(SPECIAL) + number for number, name in enumerate(SPECIAL)} if published else {},
        config={"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
    )


def _refuse(config: Config, where: str) -> None:
    kind = (config.get("rope_scaling") or {}).get("type", "dynamic")
    if kind not in ("dynamic", "linear"):
        raise UserError(f"an InternLM2 with rotary positions of type `{kind}` is not known", where=where)
    if config.get("tie_word_embeddings"):
        raise UserError("an InternLM2 whose head is tied to its embeddings is not known", where=where)


INTERNLM2 = Family(
    name="internlm2",
    recognises=lambda config: config.get("model_type") == "internlm2",
    native=_native,
    rules=_rules,
    tokenizer=_tokenizer,
    refuse=_refuse,
)
