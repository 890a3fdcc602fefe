"""Which weights move: the methods."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from luthier.recipe.sections.base import Positive, Section, Share

Init = Literal["default", "pissa", "pissa_niter_4", "pissa_niter_16", "olora", "eva", "loftq"]
STARTS_INSIDE = ("pissa", "pissa_niter_4", "pissa_niter_16", "olora")
"""Initialisations that take a part of the weight itself as the adapter's first values."""


ALL_LINEAR = "all-linear"


def _read_target(value: Any) -> Any:
    """A target as it is typed: `all-linear`, one name or several with commas between, else a regular expression."""
    if not isinstance(value, str) or value == ALL_LINEAR:
        return value
    if re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)*", value):
        return tuple(part.strip() for part in value.split(","))
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"`method.target` is neither a name nor a regular expression ({error})") from None
    return value


Target = Annotated[str | tuple[str, ...], BeforeValidator(_read_target)]
"""Layers: all linear ones, names, or a regular expression for whole dotted names."""


class Full(Section):
    """Every weight is trained."""

    type: Literal["full"] = "full"
    train_router: bool = False
    """Train what sends tokens to experts, too. Default: routers stay as they are."""


class Freeze(Section):
    """Some modules are trained, the rest is frozen."""

    type: Literal["freeze"] = "freeze"
    layers: int | tuple[int, ...] = 2
    """Train the last n decoder layers; a negative number trains the first n; 0 trains none; a list such as `[0, 5]` trains these."""
    parts: tuple[str, ...] = ()
    """Of those layers train only what ends in one of these names, e.g. `[mlp]`. Default: the whole layer."""
    modules: tuple[str, ...] = ()
    """Also train modules or parameters whose name ends in one of these, e.g. `[q_proj, norm]` or `[bias]`, in every layer."""
    embeddings: bool = False
    """Also train the token embeddings (and a tied head)."""
    head: bool = False
    """Also train the output head."""
    train_router: bool = False
    """Train what sends tokens to experts, too. Default: routers stay as they are."""


class LoRA(Section):
    """Low-rank adapters beside frozen weights (Hu et al. 2021)."""

    type: Literal["lora"] = "lora"
    rank: Positive = 8
    """Inner dimension of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """The update is scaled by alpha / rank (alpha / √rank with `rslora`)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input."""
    target: Target = ALL_LINEAR
    """`all-linear` (every linear layer but the head, experts too), names such as `[q_proj, v_proj]`, or a regular expression."""
    exclude: tuple[str, ...] = ()
    """Layers that get no adapter though `target` names them, e.g. `[down_proj]` or `[experts]`."""
    layers: tuple[int, ...] = ()
    """Only the decoder layers with these numbers, from 0; not with a regular expression. Default: all."""
    rank_pattern: dict[str, Positive] = {}
    """Another rank for some layers: end of the dotted name (a regular expression) → rank, e.g. `{v_proj: 16}`."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Another alpha for some layers, as `rank_pattern`."""
    init: Init = "default"
    """First values: `default`, from the weights (`pissa`, fast `pissa_niter_4`, `olora`), the data (`eva`), a quantised base (`loftq`)."""
    eva_rho: Annotated[float, Field(ge=1)] = 2.0
    """With `init: eva`: the most a layer's rank may grow, as a multiple of `rank`, at the cost of others; 1 keeps all ranks."""
    loraplus_ratio: Annotated[float, Field(ge=1)] = 1.0
    """LoRA+: matrix B learns this many times as fast as A (Hayou et al. 2024). 16 is usual, with half the learning rate."""
    rslora: bool = False
    """Rank-stabilised scaling alpha / √rank (Kalajdzievski 2023)."""
    dora: bool = False
    """Weight-decomposed adapters: train a magnitude per output (Liu et al. 2024)."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained whole and saved with the adapter, e.g. `[embed_tokens, lm_head]`."""
    trainable_tokens: tuple[str, ...] = ()
    """Tokens whose rows of embeddings and head are trained too, e.g. `["<|im_start|>"]`; new tokens always are."""
    train_router: bool = False
    """Train what sends tokens to experts, whole, beside the adapters. Default: routers stay as they are."""

    @model_validator(mode="after")
    def _possible(self) -> LoRA:
        if self.init in STARTS_INSIDE and self.dropout:
            raise ValueError(
                f"`method.dropout` should be 0 with `init: {self.init}`: the adapter carries a part of the model itself"
            )
        if self.layers and isinstance(self.target, str) and self.target != ALL_LINEAR:
            raise ValueError("`method.layers` cannot limit a regular expression: write the numbers into the expression")
        return self


class AdaLoRA(Section):
    """Low-rank adapters whose ranks move to the layers that need them (Zhang et al. 2023)."""

    type: Literal["adalora"] = "adalora"
    rank: Positive = 8
    """Average rank that is left at the end."""
    start_rank: Positive = 12
    """Rank of every layer at the beginning."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """The update is scaled by alpha / start_rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input."""
    target: Target = ALL_LINEAR
    """`all-linear` (every linear layer but the head), names such as `[q_proj, v_proj]`, or a regular expression for dotted names."""
    exclude: tuple[str, ...] = ()
    """Layers that get no adapter though `target` names them, e.g. `[down_proj]`."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained whole and saved with the adapter, e.g. `[embed_tokens, lm_head]`."""
    warmup: Share = 0.1
    """Share of all steps, at the beginning, before ranks are taken away."""
    settle: Share = 0.3
    """Share of all steps, at the end, in which the ranks stay as they are."""
    every: Positive = 10
    """Steps between two choices of which ranks stay."""
    orthogonality: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the penalty that keeps the directions of a layer apart."""

    @model_validator(mode="after")
    def _possible(self) -> AdaLoRA:
        if self.start_rank < self.rank:
            raise ValueError("`method.start_rank` should be at least `rank`: ranks are only taken away")
        if self.warmup + self.settle >= 1:
            raise ValueError("`method.settle` and `warmup` should leave a part of the run in which ranks are taken away")
        return self


class VeRA(Section):
    """Learnt factors on two random matrices that all layers share (Kopiczko et al. 2023). By PEFT."""

    type: Literal["vera"] = "vera"
    rank: Positive = 256
    """Inner dimension of the shared matrices. They are not trained, so it may be large."""
    target: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but the head), or names such as `[q_proj, v_proj]`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input."""
    start: Annotated[float, Field(gt=0)] = 0.1
    """First value of the factors on the inner dimension; those on the outputs begin at 0."""


class IA3(Section):
    """(IA)³: learnt factors on keys, values and the inner activations of the feed-forward part (Liu et al. 2022). By PEFT."""

    type: Literal["ia3"] = "ia3"
    target: Literal["auto"] | tuple[str, ...] = "auto"
    """Layers whose output (or input, see `feedforward`) is scaled. `auto`: projections of keys, values and the feed-forward's end."""
    feedforward: Literal["auto"] | tuple[str, ...] = "auto"
    """Those of `target` whose input is scaled instead of their output. `auto`: the feed-forward's end, e.g. `down_proj`."""


class OFT(Section):
    """Orthogonal fine-tuning: weights are turned by learnt rotations of blocks of inputs (Qiu et al. 2023). By PEFT."""

    type: Literal["oft"] = "oft"
    block_size: Positive = 32
    """Inputs in one block; larger blocks turn more freely and cost more. Where it does not divide a layer, the nearest that does."""
    target: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but the head), or names such as `[q_proj, v_proj]`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the blocks that are left unturned, at random, in training."""
    constrained: bool = False
    """Keep each rotation within a small distance of none (COFT)."""


class BOFT(Section):
    """Orthogonal fine-tuning whose rotation is a product of butterfly factors (Liu et al. 2023). By PEFT."""

    type: Literal["boft"] = "boft"
    block_size: Positive = 4
    """Inputs in one block; must divide the inputs of every adapted layer."""
    butterfly_factors: Positive = 1
    """Factors of the product; each doubles how far a rotation reaches. More than 1 needs PEFT's CUDA kernel."""
    target: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but the head), or names such as `[q_proj, v_proj]`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the blocks that are left unturned, at random, in training."""


class PrefixTuning(Section):
    """Learnt keys and values before every segment, in each layer, made by a small network (Li & Liang 2021). By PEFT."""

    type: Literal["prefix"] = "prefix"
    pre_seq_len: Positive = 20
    """Length of the learnt prefix, in positions. It takes as many from the model's context."""
    prefix_projection: bool = True
    """Make the prefix with a two-layer network, which trains more steadily and is left out of what is loaded later."""
    projection_size: Positive | None = None
    """Hidden size of that network. Default: the size of one layer's keys."""


class PTuning(Section):
    """P-tuning v2: learnt keys and values before every segment, in each layer, trained as they are (Liu et al. 2021). By PEFT."""

    type: Literal["p_tuning"] = "p_tuning"
    pre_seq_len: Positive = 128
    """Length of the learnt prefix, in positions; ChatGLM's recipes use 128. It takes as many from the model's context."""
    prefix_projection: bool = False
    """Make the prefix with a two-layer network, which trains more steadily and is left out of what is loaded later."""
    projection_size: Positive | None = None
    """Hidden size of that network. Default: the size of one layer's keys."""


class PromptTuning(Section):
    """Learnt embeddings before every segment (Lester et al. 2021). By PEFT."""

    type: Literal["prompt"] = "prompt"
    pre_seq_len: Positive = 20
    """Length of the learnt prefix, in positions. It takes as many from the model's context."""
    text: str | None = None
    """Begin with the embeddings of this text, repeated or cut to length. Default: tokens drawn from the vocabulary."""


class LlamaAdapter(Section):
    """LLaMA-Adapter: learnt prompts in the attention of the upper layers, behind gates that begin closed (Zhang et al. 2023). By PEFT."""

    type: Literal["llama_adapter"] = "llama_adapter"
    adapter_len: Positive = 10
    """Length of the learnt prompt, in positions."""
    adapter_layers: Positive | None = None
    """How many of the last layers get one. Default: all."""


class LlamaPro(Section):
    """LLaMA-Pro: new decoder blocks that begin as the identity are put between the frozen ones and trained (Wu et al. 2024)."""

    type: Literal["llama_pro"] = "llama_pro"
    blocks: Positive = 4
    """How many blocks are added, spread evenly; each begins as a copy of the one before it that adds nothing."""


class NormTuning(Section):
    """Train the normalisation layers alone (Zhao et al. 2023). By PEFT."""

    type: Literal["layernorm"] = "layernorm"
    target: Literal["auto"] | tuple[str, ...] = "auto"
    """`auto` (every normalisation layer), or names such as `[input_layernorm, norm]`."""


Prefixed = PrefixTuning | PTuning | PromptTuning
"""Methods that put something learnt before every segment."""

Method = Annotated[
    Full
    | Freeze
    | LoRA
    | AdaLoRA
    | VeRA
    | IA3
    | OFT
    | BOFT
    | PrefixTuning
    | PTuning
    | PromptTuning
    | LlamaAdapter
    | LlamaPro
    | NormTuning,
    Field(discriminator="type"),
]
