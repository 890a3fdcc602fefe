"""Folders of GPTQ and AWQ are unpacked to the weights that were packed, and serve as frozen bases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier.errors import UserError
from luthier.models.adapters.merge import merge
from luthier.models.linear import dense_weight, quantised_layers, stored_bytes
from luthier.models.loading import load_model
from luthier.models.methods import apply_method, load_adapter
from luthier.models.policy import Policy, save_model
from luthier.recipe.schema import LoRA, Model, Quantization
from tests.families import build
from tests.models.quantised import logits

GROUP = 32
LAYOUTS: dict[str, dict[str, Any]] = {
    "gptq 4": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    "gptq 8": {"quant_method": "gptq", "bits": 8, "group_size": GROUP, "desc_act": False, "checkpoint_format": "gptq"},
    "gptq 2": {"quant_method": "gptq", "bits": 2, "group_size": GROUP, "desc_act": False},
    "gptq sorted": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
    "gptq v2": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The neighbours as AutoAWQ lays them into an int32, from the lowest bits on."""


def pack(numbers: NDArray[np.uint32], bits: int, axis: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Whole numbers to int32 along an axis, number by number, as the writers of such files do."""
    per = 32 // bits
    numbers = np.moveaxis(numbers, axis, 0)
    packed = np.zeros((len(numbers) // per, *numbers.shape[1:]), dtype=np.uint32)
    for place, source in enumerate(order or range(per)):
        packed |= numbers[source::per] << np.uint32(place * bits)
    return torch.from_numpy(np.moveaxis(packed, 0, axis).astype(np.int32).copy())


def quantised(weight: Tensor, settings: dict[str, Any], seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """The packed tensors of a weight [out, in], and the weight that they stand for."""
    bits, levels = settings["bits"], 2 ** settings["bits"]
    generator = np.random.default_rng(seed)
    rows = weight.T.double().numpy()  # [in, out]
    group = np.arange(len(rows)) // GROUP
    if settings.get("desc_act"):
        group = generator.permutation(group)
    zeros = generator.integers(1, levels, (group.max() + 1, rows.shape[1])).astype(np.uint32)
    scales = (np.abs(rows).max() * generator.uniform(0.8, 1.2, zeros.shape) / levels * 2).astype(np.float16)
    whole = np.clip(np.round(rows / scales[group] + zeros[group]), 0, levels - 1).astype(np.uint32)
    exact = (whole.astype(np.float64) - zeros[group]) * scales[group]
    if settings["quant_method"] == "awq":
        tensors = {"qweight": pack(whole, 4, 1, AWQ_ORDER), "qzeros": pack(zeros, 4, 1, AWQ_ORDER)}
    else:
        stored = zeros if settings.get("checkpoint_format") == "gptq_v2" else zeros - 1
        tensors = {"qweight": pack(whole, bits, 0), "qzeros": pack(stored, bits, 1)}
        tensors["g_idx"] = torch.from_numpy(group.astype(np.int32))
    return tensors | {"scales": torch.from_numpy(scales)}, torch.from_numpy(exact.T).float()


def folders(family: str, layout: str, folder: Path) -> tuple[Path, Path]:
    """A folder in few bits, and the dense model that it stands for."""
    model, settings = build(family), LAYOUTS[layout]
    tensors = dict(model.state_dict())
    for number, name in enumerate([name for name in tensors if name.endswith("proj.weight")]):
        packed, exact = quantised(tensors[name], settings, number)
        model.get_parameter(name).data.copy_(exact)
        del tensors[name]
        tensors |= {f"{name.removesuffix('weight')}{part}": value for part, value in packed.items()}
    save_model(model, folder / "dense")
    model.config.save_pretrained(folder / "packed")
    config = json.loads((folder / "packed" / "config.json").read_text())
    (folder / "packed" / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "packed" / "model.safetensors")
    return folder / "packed", folder / "dense"


def load(folder: Path, **settings: Any) -> Any:
    return load_model(Model(path=str(folder), **settings), dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_folder_is_the_model_that_it_stands_for(layout: str, tmp_path: Path) -> None:
    packed, dense = folders("qwen3" if layout == "awq" else "llama", layout, tmp_path)
    model, exact = load(packed), load(dense)
    layers = quantised_layers(model)
    assert len(layers) == 14
    for name, layer in layers.items():
        torch.testing.assert_close(dense_weight(layer), exact.get_submodule(name).weight, atol=1e-6, rtol=1e-4)
    assert (logits(model) - logits(exact)).abs().max() <= 1e-4
    if "4" in layout:
        assert sum(map(stored_bytes, layers.values())) < 0.4 * sum(
            2 * layer.in_features * layer.out_features for layer in layers.values()
        )


@pytest.mark.parametrize("variant", [{}, {"dora": True}])
@pytest.mark.parametrize("layout", ["gptq 4", "awq"])
def test_a_packed_folder_trains_saves_and_merges(layout: str, variant: dict[str, bool], tmp_path: Path) -> None:
    packed, dense = folders("llama", layout, tmp_path)
    model = load(packed)
    policy = Policy(model, apply_method(model, LoRA(rank=2, **variant), seed=0))
    for parameter in policy.trainable.parameters.values():
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05
    policy.save(tmp_path / "adapter")
    exact = load(dense)
    load_adapter(exact, tmp_path / "adapter")
    assert (logits(model) - logits(exact)).abs().max() <= 1e-4
    save_model(merge(model), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (logits(merged) - logits(exact)).abs().max() <= 1e-4


def test_biases_come_along(tmp_path: Path) -> None:
    packed, _ = folders("llama", "gptq 4", tmp_path)
    plain = logits(load(packed))
    from safetensors.torch import load_file

    tensors = load_file(packed / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.full((64,), 0.5, dtype=torch.float16)
    save_file(tensors, packed / "model.safetensors")
    model = load(packed)
    assert model.model.layers[0].self_attn.q_proj.bias.dtype == torch.float32
    assert (logits(model) - plain).abs().max() > 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "aqlm"}, "quantised as aqlm are not read"),
        ({"quant_method": "gptq", "bits": 3}, "gptq, 3 bits, layout `gptq` are not read"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "layout `gemv` are not read"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "layout `marlin` are not read"),
    ],
)
def test_other_layouts_are_refused_by_name(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    packed, _ = folders("llama", "gptq 4", tmp_path)
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(UserError, match=message):
        load(packed)


def test_what_is_quantised_is_not_quantised_again(tmp_path: Path) -> None:
    packed, _ = folders("llama", "gptq 4", tmp_path)
    with pytest.raises(UserError, match="quantised with gptq already"):
        load(packed, quantization=Quantization())


def test_single_experts_in_few_bits_are_refused_in_words(tmp_path: Path) -> None:
    """The architecture has the experts of a layer in one parameter, which nothing here unpacks to."""
    with pytest.raises(UserError, match=r"experts\.0\.down_proj` is quantised in the files"):
        load_model(Model(path=str(split_experts(tmp_path))), dtype=torch.float32, device=torch.device("cpu"))


def split_experts(folder: Path) -> Path:
    """A tiny Qwen3-MoE with one expert's projection packed as GPTQ does."""
    settings = LAYOUTS["gptq 4"]
    save_model(build("qwen3_moe"), folder)
    tensors = load_file(folder / "model.safetensors")
    weight = tensors.pop("model.layers.0.mlp.experts.0.down_proj.weight")
    packed, _ = quantised(weight, settings, 0)
    tensors |= {f"model.layers.0.mlp.experts.0.down_proj.{name}": value for name, value in packed.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder
