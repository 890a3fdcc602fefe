"""Bases in few bits, as the recipe asks for them and as their libraries make them without Luthier."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from luthier.models.loading import load_model
from luthier.models.quantize.base import round_weights
from luthier.models.quantize.scheme import Scheme
from luthier.recipe.schema import Model, Quantization

KINDS: dict[str, dict[str, Any] | None] = {
    "fp32": None,
    "nf4": {"bits": 4},
    "nf4 without double": {"type": "nf4", "double": False},
    "fp4": {"type": "fp4"},
    "int8": {"bits": 8},
    "hqq": {"method": "hqq"},
    "hqq 8": {"method": "hqq", "bits": 8},
    "hqq 3": {"bits": 3},
    "hqq 2": {"bits": 2},
    "torchao int8": {"method": "torchao", "bits": 8},
    "torchao int4": {"method": "torchao", "bits": 4},
    "torchao fp8": {"type": "fp8"},
}
"""Name of a kind → what the recipe says."""
PACKAGES = {"nf4": "bitsandbytes", "fp4": "bitsandbytes", "int8": "bitsandbytes", "hqq": "hqq", "torchao": "torchao"}
TOKENS = torch.arange(3, 27)[None]


def need(kind: str) -> None:
    """Skip where the library is not installed."""
    if package := PACKAGES.get(kind.split()[0]):
        pytest.importorskip(package)


def load(folder: Path, kind: str, **settings: Any) -> PreTrainedModel:
    """The base of `folder` as a recipe loads it, float32."""
    need(kind)
    said = KINDS[kind]
    section = Model(path=str(folder), quantization=None if said is None else Quantization(**said, **settings))
    return load_model(section, dtype=torch.float32, device=torch.device("cpu"))


def plain(folder: Path, kind: str) -> PreTrainedModel:
    """The same base made by transformers and the library alone, in training mode.

    In evaluation mode bitsandbytes computes 4-bit layers in bfloat16 on CPUs that can, and differs from itself by percents.
    """
    library, said = kind.split()[0], KINDS[kind] or {}
    options: dict[str, Any] = {}
    if library in ("nf4", "fp4", "int8"):
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=library == "int8",
            load_in_4bit=library != "int8",
            bnb_4bit_quant_type="fp4" if library == "fp4" else "nf4",
            bnb_4bit_use_double_quant=said.get("double", True),
            bnb_4bit_compute_dtype=torch.float32,
        )
    elif library == "torchao":
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig
        from torchao.quantization.granularity import PerGroup
        from transformers import TorchAoConfig

        configs = {
            "fp8": Float8WeightOnlyConfig(),
            "int8": Int8WeightOnlyConfig(),
            "int4": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(64)),
        }
        options["quantization_config"] = TorchAoConfig(configs[kind.split()[1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = {"device_map": {"": "cpu"}} if options else {}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options, **place)
    if library == "hqq":
        _by_hqq(model, int(Quantization(**said).bits))
    return model.train()


def written_out(folder: Path, kind: str) -> PreTrainedModel:
    """The same base with its rounded weights in full, for adapters that PEFT does not put beside such layers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if (said := KINDS[kind]) is not None:
        round_weights(model, Scheme(Quantization(**said), torch.float32, torch.device("cpu")))
    return model.train()


def _by_hqq(model: PreTrainedModel, bits: int) -> None:
    """transformers 5 has no HQQ, so its layers are put in by hand."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    settings = BaseQuantizeConfig(nbits=bits, group_size=64, axis=1)
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear and name != "lm_head"]
    for name in linear:
        packed = HQQLinear(model.get_submodule(name), settings, compute_dtype=torch.float32, device="cpu", del_orig=False)
        model.set_submodule(name, packed)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """What a model says of the same tokens."""
    return model(input_ids=TOKENS, use_cache=False).logits
