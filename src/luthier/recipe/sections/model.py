"""The model to start from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from luthier.recipe.sections.base import Section

QUANTISERS: dict[str, tuple[str, ...]] = {
    "bnb": ("nf4", "fp4", "int8"),
    "hqq": ("int4", "int8", "int3", "int2"),
    "torchao": ("int8", "int4", "fp8"),
}
"""Library → the types that it quantises to. The first library that has a type is the one that is taken."""


class Quantization(Section):
    """Load the frozen base in few bits (QLoRA); what is left out follows from what is said."""

    bits: Literal[2, 3, 4, 8] = 4
    """Bits per weight of the base."""
    type: Literal["nf4", "fp4", "int8", "int4", "int3", "int2", "fp8"] = "nf4"
    """Numbers that weights are rounded to: by default `nf4` for 4 bits (`int4` with hqq and torchao), else `int8`, `int3`, `int2`."""
    method: Literal["bnb", "hqq", "torchao"] = "bnb"
    """bitsandbytes (`nf4`, `fp4`, `int8`), hqq (`int8` to `int2`) or torchao (`int8`, `int4`, `fp8`); the first with the type."""
    double: bool = True
    """Quantise the scales of `nf4` and `fp4` too; saves 0.4 bit per weight."""
    group: Literal[32, 64, 128] = 64
    """Weights that share a scale, with hqq and with torchao's `int4`."""
    compute: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type that `nf4` and `fp4` layers compute in. `auto` follows `train.precision`."""
    skip: tuple[str, ...] = ()
    """Linear layers that stay as they are, by the end of their name, e.g. `[down_proj]`; the output head always does."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = {key: part for key, part in value.items() if part is not None}
        if "type" not in value:
            bits = value.get("bits", 4)
            value["type"] = "nf4" if bits == 4 and value.get("method", "bnb") == "bnb" else f"int{bits}"
        having = [method for method, types in QUANTISERS.items() if value["type"] in types]
        return ({"bits": int(value["type"][-1]), "method": having[0]} if having else {}) | value

    @model_validator(mode="after")
    def _possible(self) -> Quantization:
        types = QUANTISERS[self.method]
        if self.type not in types:
            raise ValueError(f"{self.method} has no `{self.type}`, only {', '.join(types)}")
        if self.bits != int(self.type[-1]):
            raise ValueError(f"`{self.type}` has {self.type[-1]} bits, not {self.bits}: leave one of the two out")
        return self


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
    """Load the base in few bits; only for methods that leave it frozen. A folder that GPTQ or AWQ made needs no word."""
