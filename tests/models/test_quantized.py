"""Adapters over a base in few bits: the same formulas over the dequantised weights, and a dense model after merging."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.lora import adapted_layers, dense_weight, is_quantised
from luthier.models.adapters.merge import merge
from luthier.models.loading import load_model
from luthier.models.methods import apply_method
from luthier.models.policy import Policy, save_model
from luthier.recipe.schema import LoRA, Model, Quantization
from tests.families import save
from tests.models.batches import ragged

pytest.importorskip("bitsandbytes")
TOKENS = torch.arange(3, 27)[None]


def load(folder: Path, bits: int, **changes: int) -> PreTrainedModel:
    save("llama", folder, **changes)
    section = Model(path=str(folder), quantization=Quantization(bits=bits))  # type: ignore[arg-type]
    return load_model(section, dtype=torch.float32, device=torch.device("cpu"))


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_trains_saves_and_merges(bits: int, dora: bool, tmp_path: Path) -> None:
    model = load(tmp_path / "base", bits)
    base = logits(model)
    trained = apply_method(model, LoRA(rank=2, dora=dora), seed=0)
    policy = Policy(model, trained)
    layers = adapted_layers(model)
    assert len(layers) == 14
    assert all(is_quantised(layer.base_layer) for layer in layers.values())
    assert trained.total > 100_000, "packed weights count as what they stand for"
    assert policy.isolation.ok, policy.isolation.reason
    assert torch.allclose(logits(model), base, atol=1e-4)
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.05)
    policy.hidden(ragged([9, 20]), packing=True).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters.values())
    policy.save(tmp_path / "adapter")
    before = logits(model)
    save_model(merge(model), tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    bound = 0.03 if bits == 8 else 1e-4  # LLM.int8 quantises its inputs too
    assert torch.linalg.norm(logits(plain) - before) <= bound * torch.linalg.norm(before)


def test_four_bits_compute_the_same_with_and_without_gradients(tmp_path: Path) -> None:
    model = load(tmp_path, 4)
    assert torch.allclose(model(input_ids=TOKENS).logits, logits(model), atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_dequantised_weights_are_near_the_original(bits: int, tmp_path: Path) -> None:
    model = load(tmp_path, bits)
    original = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, layer in model.named_modules():
        if name.endswith("_proj"):
            weight, exact = dense_weight(layer), original.get_submodule(name).weight
            error = torch.linalg.norm(weight.float() - exact) / torch.linalg.norm(exact)
            assert error < (0.02 if bits == 8 else 0.15), name


def test_sizes_that_four_bits_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="divisible by 64, and intermediate_size is 100"):
        load(tmp_path, 4, intermediate_size=100)
