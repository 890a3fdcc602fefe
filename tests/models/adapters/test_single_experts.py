"""Adapters on experts that were modules of their own give on fused ones what they gave then; PEFT reads the same in them."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import luthier.models
from luthier.models.adapters.experts import expert_layers
from luthier.models.adapters.format import CONFIG_FILE, WEIGHTS_FILE
from luthier.models.methods import load_adapter
from tests.families import build
from tests.models.legacy.cases import fixture

TOKENS = torch.arange(3, 24)[None]
RANK, ALPHA = 3, 5.0
NAMES = {"mixtral": ("block_sparse_moe", "w1", "w3", "w2"), "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj")}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


def old_adapter(model: Any, folder: Path, block: str, names: tuple[str, ...], **settings: Any) -> Any:
    """A file as PEFT wrote it with transformers 4, and `model` with the same update added to its weights."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    scaling = ALPHA / (math.sqrt(RANK) if settings.get("use_rslora") else RANK)

    def pair(key: str, outputs: int, inputs: int) -> Tensor:
        a, b = (torch.randn(size, generator=generator) * 0.2 for size in ((RANK, inputs), (outputs, RANK)))
        tensors[f"base_model.model.{key}.lora_A.weight"], tensors[f"base_model.model.{key}.lora_B.weight"] = a, b
        return scaling * b @ a

    for number, layer in enumerate(model.model.layers):
        query = layer.self_attn.q_proj.weight
        query.data += pair(f"model.layers.{number}.self_attn.q_proj", *query.shape)
        if not hasattr(layer.mlp, "experts"):
            continue
        experts = layer.mlp.experts
        half = experts.gate_up_proj.shape[1] // 2
        places = {names[0]: experts.gate_up_proj[:, :half], names[1]: experts.gate_up_proj[:, half:], names[2]: experts.down_proj}
        for expert in range(len(experts.down_proj)):
            for name, weight in places.items():
                key = f"model.layers.{number}.{block}.experts.{expert}.{name}"
                weight.data[expert] += pair(key, *weight.shape[1:])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj", *names], "task_type": "CAUSAL_LM"}
    (folder / CONFIG_FILE).write_text(json.dumps(config | settings))
    return model


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
@pytest.mark.parametrize("family", NAMES)
def test_the_update_is_the_same(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    block, *names = NAMES[family]
    expected = logits(old_adapter(build(family), tmp_path, block, tuple(names), **settings))
    model = build(family)
    load_adapter(model, tmp_path)
    assert expert_layers(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
    if not settings:  # PEFT doubles alpha with the rank whatever the scaling
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = peft.PeftModel.from_pretrained(build(family), str(tmp_path)).eval()
        torch.testing.assert_close(logits(theirs), expected, atol=1e-4, rtol=0)


def test_one_part_alone(tmp_path: Path) -> None:
    expected = logits(old_adapter(build("mixtral"), tmp_path, "block_sparse_moe", ("w1", "w3", "w2")))
    tensors = {key: value for key, value in luthier_tensors(tmp_path).items() if ".w3." in key or ".experts." not in key}
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    model = build("mixtral")
    load_adapter(model, tmp_path)
    assert {part for layer in expert_layers(model).values() for part, _, _ in layer.parts()} == {"gate_up_proj"}
    assert not torch.allclose(logits(model), expected, atol=1e-2)
    for layer in expert_layers(model).values():
        weight = layer.base_layer.gate_up_proj
        moved = (layer.effective_weights()["gate_up_proj"] - weight).abs().amax((0, 2)) > 0
        assert moved.tolist() == [row >= weight.shape[1] // 2 for row in range(weight.shape[1])]


def luthier_tensors(folder: Path) -> dict[str, Tensor]:
    from luthier.models.adapters.format import load_tensors

    return load_tensors(folder / WEIGHTS_FILE)


def test_an_old_adapter_of_a_converted_checkpoint(shared: Path, tmp_path: Path) -> None:
    source = str(fixture(shared, "deepseek_moe"))
    names = ("gate_proj", "up_proj", "down_proj")
    expected = logits(old_adapter(luthier.models.load(source), tmp_path, "mlp", names, target_modules=[r"q_proj"]))
    model = luthier.models.load(source)
    load_adapter(model, tmp_path)
    assert expert_layers(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
