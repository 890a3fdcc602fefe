"""The model to start from."""

from __future__ import annotations

from typing import Literal

from luthier.recipe.sections.base import Section


class Quantization(Section):
    """Load the frozen base in few bits (QLoRA)."""

    bits: Literal[4, 8] = 4
    """Bits per weight of the base: 4 (NF4) or 8 (LLM.int8). Needs bitsandbytes."""
    double: bool = True
    """Quantise the scales of 4-bit weights too; saves 0.4 bit per weight."""


class Model(Section):
    """The model to start from."""

    path: str
    """`tiny` (the embedded model), a folder, or a hub id such as `Qwen/Qwen3-0.6B`."""
    hub: Literal["auto", "huggingface", "modelscope"] = "auto"
    """Where a hub id is fetched from. `auto` is Hugging Face, or ModelScope when `USE_MODELSCOPE_HUB=1`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    tokenizer: str | None = None
    """A folder or hub id to take the tokenizer from, if not the model's own."""
    adapter: str | None = None
    """A LoRA adapter (folder or hub id, PEFT format) to continue from."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights in memory. `auto` follows `train.precision`."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation. `auto` takes the fastest that is installed and correct."""
    quantization: Quantization | None = None
    """Quantise the base weights when loading; only for methods that leave the base frozen."""
