"""Which weights move: the methods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.sections.base import Positive, Section


class Full(Section):
    """Every weight is trained."""

    type: Literal["full"] = "full"


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


class LoRA(Section):
    """Low-rank adapters beside frozen weights (Hu et al. 2021)."""

    type: Literal["lora"] = "lora"
    rank: Positive = 8
    """Inner dimension of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """The update is scaled by alpha / rank (alpha / √rank with `rslora`)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input."""
    target: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but the head), or names such as `[q_proj, v_proj]`."""
    rslora: bool = False
    """Rank-stabilised scaling alpha / √rank (Kalajdzievski 2023)."""
    dora: bool = False
    """Weight-decomposed adapters: train a magnitude per output (Liu et al. 2024)."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained whole and saved with the adapter, e.g. `[embed_tokens, lm_head]`."""


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
    Full | Freeze | LoRA | IA3 | OFT | BOFT | PrefixTuning | PTuning | PromptTuning | LlamaAdapter | LlamaPro | NormTuning,
    Field(discriminator="type"),
]
