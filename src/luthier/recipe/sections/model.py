"""The model to start from."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from luthier.recipe.sections.base import Positive, Section

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
        if "type" not in value and (bits := value.get("bits", 4)) in (2, 3, 4, 8):
            value["type"] = "nf4" if bits == 4 and value.get("method", "bnb") == "bnb" else f"int{bits}"
        having = [method for method, types in QUANTISERS.items() if value.get("type") in types]
        return ({"bits": int(value["type"][-1]), "method": having[0]} if having else {}) | value

    @model_validator(mode="after")
    def _possible(self) -> Quantization:
        types = QUANTISERS[self.method]
        if self.type not in types:
            raise ValueError(f"{self.method} has no `{self.type}`, only {', '.join(types)}")
        if self.bits != int(self.type[-1]):
            raise ValueError(f"`{self.type}` has {self.type[-1]} bits, not {self.bits}: leave one of the two out")
        return self


class RopeScaling(Section):
    """Stretch rotary positions, so that a model takes longer texts than it was trained on."""

    type: Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
    """How positions are stretched. `yarn` needs least training afterwards; `dynamic` leaves texts of the original length alone."""
    factor: Annotated[float, Field(gt=1)]
    """How many times the original length the longest text may have."""
    original_length: Positive | None = None
    """Positions that the model was trained with. Default: what its config says."""
    low_freq_factor: Annotated[float, Field(gt=0)] | None = None
    """`llama3`: waves longer than the original length over this are stretched by the whole factor. Default 1."""
    high_freq_factor: Annotated[float, Field(gt=0)] | None = None
    """`llama3`: waves shorter than the original length over this are left alone. Default 4."""
    beta_fast: Annotated[float, Field(gt=0)] | None = None
    """`yarn`: dimensions that turn more often than this within the original length are left alone. Default 32."""
    beta_slow: Annotated[float, Field(gt=0)] | None = None
    """`yarn`: dimensions that turn less often than this are stretched by the whole factor. Default 1."""
    attention_factor: Annotated[float, Field(gt=0)] | None = None
    """`yarn`, `longrope`: what queries and keys are multiplied by. Default: as the method's paper has it."""
    short_factor: tuple[float, ...] = ()
    """`longrope`: a factor for each pair of dimensions, used up to the original length. Default: all 1."""
    long_factor: tuple[float, ...] = ()
    """`longrope`: a factor for each pair of dimensions, used beyond the original length. Required there."""

    @model_validator(mode="after")
    def _of_its_type(self) -> Self:
        for name, types in _ONLY.items():
            if getattr(self, name) not in (None, ()) and self.type not in types:
                raise ValueError(f"`model.rope_scaling.{name}` belongs to {' and '.join(types)}, not to `{self.type}`")
        if self.type == "longrope" and not self.long_factor:
            raise ValueError("`model.rope_scaling.long_factor` is missing: longrope has a factor for each pair of dimensions")
        return self


_ONLY = {
    "low_freq_factor": ("llama3",),
    "high_freq_factor": ("llama3",),
    "beta_fast": ("yarn",),
    "beta_slow": ("yarn",),
    "attention_factor": ("yarn", "longrope"),
    "short_factor": ("longrope",),
    "long_factor": ("longrope",),
}
"""Settings of rotary scaling → the types that have them."""


class Model(Section):
    """The model to start from."""

    path: str
    """`tiny` (the embedded model), a folder, a name that `luthier models list` prints, or a hub id such as `Qwen/Qwen3-0.6B`."""
    hub: Literal["auto", "huggingface", "modelscope"] = "auto"
    """Where a hub id is fetched from. `auto` is Hugging Face, or ModelScope when `USE_MODELSCOPE_HUB=1`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    tokenizer: str | None = None
    """A folder or hub id to take the tokenizer from, if not the model's own."""
    adapter: str | None = None
    """A LoRA adapter (folder or hub id, PEFT format) to continue from."""
    new_tokens: tuple[str, ...] = ()
    """Tokens added to the vocabulary, e.g. `["<think>", "</think>"]`; each becomes one token, and its embedding is learnt."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights in memory. `auto` follows `train.precision`."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation. `auto` takes the fastest that is installed and correct."""
    quantization: Quantization | None = None
    """Load the base in few bits; only for methods that leave it frozen. A folder that GPTQ or AWQ made needs no word."""
    rope_scaling: RopeScaling | None = None
    """Stretch rotary positions for longer texts; written into the config of the trained model."""
