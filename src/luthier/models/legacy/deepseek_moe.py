"""DeepSeek-MoE (2024, arXiv:2401.06066; the 16B) → a small class of our own (see `luthier.models.legacy.deepseek_moe_model`).

Names are kept, but for the routed experts, which natively lie in two tensors a layer:

    experts.gate_up_proj [E, 2i, h]   of each expert the rows of its gate, then those of its plain branch
    experts.down_proj    [E, h, i]

The original's auxiliary loss (0.001, per sequence) added to gradients in training; it is not part of the model here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.models.legacy.family import LLAMA_KEYS, LLAMA_QKV, LLAMA_RULES, Config, Family, copied, default_rope
from luthier.models.legacy.mapping import Rule

if TYPE_CHECKING:
    from torch import Tensor

MLP = "model.layers.*.mlp."


class GatesAndBranches:
    """gate and up of each expert in turn, 2E tensors [i, h] ↔ one of [E, 2i, h]."""

    def forth(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Stack them."""
        import torch

        return [torch.stack([torch.cat(pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)])]

    def back(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Take them apart."""
        return [half for expert in tensors[0] for half in expert.chunk(2)]


class Stacked:
    """E tensors ↔ one with a first dimension more."""

    def forth(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Stack them."""
        import torch

        return [torch.stack(list(tensors))]

    def back(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Take them apart."""
        return list(tensors[0])


def _native(config: Config) -> dict[str, Any]:
    kept = ("num_key_value_heads", "moe_intermediate_size", "attention_bias", "attention_dropout")
    return copied(config, *LLAMA_KEYS, *kept) | {
        "architectures": ["DeepseekMoeForCausalLM"],
        "model_type": "luthier_deepseek_moe",
        "moe_num_experts": config["n_routed_experts"],
        "moe_k": config["num_experts_per_tok"],
        "moe_num_shared_experts": config.get("n_shared_experts") or 0,
        "moe_layer_start_index": config.get("first_k_dense_replace", 0),
        "renormalises": bool(config.get("norm_topk_prob")),
        "rope_parameters": default_rope(config.get("rope_theta", 10000)),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings")),
    }


def _rules(config: Config) -> tuple[Rule, ...]:
    experts = [f"{MLP}experts.{number}." for number in range(config["n_routed_experts"])]
    same = (*LLAMA_QKV, MLP + "gate.weight", *(f"{MLP}shared_experts.{part}_proj.*" for part in ("gate", "up", "down")))
    return (
        *LLAMA_RULES,
        *(Rule(name, name) for name in same),
        Rule(
            tuple(f"{expert}{part}_proj.weight" for expert in experts for part in ("gate", "up")),
            MLP + "experts.gate_up_proj",
            GatesAndBranches(),
        ),
        Rule(tuple(f"{expert}down_proj.weight" for expert in experts), MLP + "experts.down_proj", Stacked()),
    )


def _refuse(config: Config, where: str) -> None:
    usual = {"moe_layer_freq": 1, "scoring_func": "softmax", "rope_scaling": None, "hidden_act": "silu"}
    if changed := [key for key, value in usual.items() if config.get(key, value) != value]:
        raise UserError(f"a DeepSeek-MoE with `{changed[0]}: {config[changed[0]]}` is not known", where=where)
    if not config.get("n_routed_experts"):
        raise UserError("a DeepSeek-MoE without experts is not known", where=where, hint="Is the config complete?")


DEEPSEEK_MOE = Family(
    name="deepseek-moe",
    recognises=lambda config: config.get("model_type") == "deepseek",
    native=_native,
    rules=_rules,
    refuse=_refuse,
)
