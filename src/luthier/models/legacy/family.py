"""What is to be known of one family of old checkpoints. Each has a file of its own beside this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.models.legacy.mapping import Rule

if TYPE_CHECKING:
    from torch import Tensor

Config = Mapping[str, Any]
"""The content of a `config.json`."""

ORIGIN = "luthier_origin"
"""Key in the native `config.json` under which a converted model keeps its family and its original config."""
NORMALISED_HEAD = "normalised_head"
"""Key in the native `config.json` of a model whose output head has rows of length 1 (see `luthier.models.legacy.norm_head`)."""


@dataclass(frozen=True)
class Added:
    """What a tokenizer's folder does not say, because it stood in the code beside it.

    Args:
        tokens: special tokens beyond the vocabulary file: text → id.
        config: keys for `tokenizer_config.json` where it does not have them, such as roles of special tokens and the chat template.
        names: special tokens that keep the id which the SentencePiece model has for them, or are numbered on after its pieces.
        instead: keys that stand in the place of the file's.
    """

    tokens: Mapping[str, int] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    instead: Mapping[str, Any] = field(default_factory=dict)


def nothing_added(_config: Config) -> Added:
    """For tokenizers whose files say everything."""
    return Added()


def no_buffers(_config: Config) -> dict[str, Callable[[], Tensor]]:
    """For checkpoints that store parameters only."""
    return {}


@dataclass(frozen=True)
class Family:
    """One family of old checkpoints.

    Attributes:
        name: what it is called in messages, in `--family`, and in a converted model's config.
        recognises: whether a `config.json` is one of this family; no two families recognise the same.
        native: the native `config.json`, made of the original one.
        rules: which tensors go where, given the original config.
        buffers: stored tensors that are no parameters, left out of the native model: pattern of the name → how to compute it, float32.
        repeated: tensors that are stored a second time under another name, in old names: copy → original. Only where both are tied.
        tokenizer: what to add to the tokenizer's files.
        refuse: raises a UserError for a variant that cannot be converted exactly.
    """

    name: str
    recognises: Callable[[Config], bool]
    native: Callable[[Config], dict[str, Any]]
    rules: Callable[[Config], tuple[Rule, ...]]
    buffers: Callable[[Config], dict[str, Callable[[], Tensor]]] = no_buffers
    repeated: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Callable[[Config], Added] = nothing_added
    refuse: Callable[[Config, str], None] = lambda _config, _where: None


def copied(config: Config, *keys: str) -> dict[str, Any]:
    """Those of `keys` that are in a config."""
    return {key: config[key] for key in keys if config.get(key) is not None}


def default_rope(base: float = 10000.0) -> dict[str, Any]:
    """`rope_parameters` of plain rotary positions."""
    return {"rope_type": "default", "rope_theta": float(base)}


def inverse_frequencies(dimensions: int, base: float = 10000.0) -> Tensor:
    """The buffer `inv_freq` [dimensions / 2], float32, that rotary modules of old used to store."""
    import torch

    return 1.0 / (base ** (torch.arange(0, dimensions, 2).float() / dimensions))


LLAMA_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "initializer_range",
    "rms_norm_eps", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
"""Keys that mean the same in the many families that were made after Llama."""

LLAMA_RULES = tuple(
    Rule(name, name)
    for name in (
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.*.input_layernorm.weight",
        "model.layers.*.post_attention_layernorm.weight",
        "model.layers.*.self_attn.o_proj.*",
        "model.layers.*.mlp.gate_proj.*",
        "model.layers.*.mlp.up_proj.*",
        "model.layers.*.mlp.down_proj.*",
    )
)
"""Names that are Llama's already, but for queries, keys and values."""

LLAMA_QKV = tuple(f"model.layers.*.self_attn.{part}_proj.*" for part in "qkv")
"""Llama's names of queries, keys and values."""
