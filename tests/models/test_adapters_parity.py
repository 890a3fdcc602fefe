"""Adapters compute what PEFT's compute, on every family, in both directions, and merge to the same model."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.format import write_adapter
from luthier.models.adapters.insert import insert_adapter
from luthier.models.adapters.lora import adapted_layers, without_adapters
from luthier.models.adapters.merge import merge
from luthier.models.methods import load_adapter
from tests import families

KINDS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}
TOKENS = torch.arange(3, 27)[None] * 7 % families.VOCAB
TOLERANCE = 1e-6


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def shaken(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """Adapter values as after some training: A and B random, magnitudes moved, whole modules changed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                if "lora_A" in name or "lora_B" in name:
                    parameter.copy_(noise * 0.05)
                else:
                    parameter.mul_(1 + 0.1 * noise)
    return model


def adapted(family: str, **settings: Any) -> PreTrainedModel:
    model = families.build(family)
    insert_adapter(model, AdapterConfig(rank=4, alpha=8, **settings), seed=0)
    return shaken(model)


def in_peft(base: PreTrainedModel, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, str(folder)).eval()


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max().clamp_min(1.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [*families.MATRIX, "phi", "opt", "falcon"])
def test_a_saved_adapter_gives_the_same_logits_in_plain_peft(family: str, kind: str, tmp_path: Path) -> None:
    model = adapted(family, **KINDS[kind])
    write_adapter(tmp_path, model)
    theirs = in_peft(families.build(family), tmp_path)
    assert not close(logits(model), logits(families.build(family))), "the adapter must change something for the test to mean much"
    assert close(logits(model), logits(theirs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", families.MATRIX)
def test_merging_gives_peft_s_merged_model(family: str, kind: str, tmp_path: Path) -> None:
    model = adapted(family, **KINDS[kind])
    write_adapter(tmp_path, model)
    theirs = in_peft(families.build(family), tmp_path).merge_and_unload()
    before = logits(model)
    merged = merge(model)
    assert not adapted_layers(merged)
    for name, value in merged.state_dict().items():
        assert close(value, theirs.state_dict()[name]), name
    assert torch.allclose(logits(merged), before, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_peft(kind: str, tmp_path: Path) -> None:
    model = adapted("llama", **KINDS[kind])
    write_adapter(tmp_path, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(families.build("llama"), str(tmp_path), is_trainable=True)
    for each in (model, theirs):
        each(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    found = {name.replace(".default", "").removeprefix("base_model.model."): p.grad for name, p in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            suffix = "" if name.endswith("lora_magnitude_vector") else ".weight"
            expected = found.get(name + suffix, found.get(name + ".weight"))
            assert torch.linalg.norm(parameter.grad - expected) <= 1e-5 * torch.linalg.norm(expected), name


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_draws_what_peft_draws(kind: str, tmp_path: Path) -> None:
    model = adapted("llama", dropout=0.3, **KINDS[kind])
    write_adapter(tmp_path, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(families.build("llama"), str(tmp_path), is_trainable=True)
    results = []
    for each in (model.train(), theirs.train()):
        torch.manual_seed(5)
        results.append(logits(each))
    assert close(*results)


PEFT_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "rank_pattern": {"v_proj": 2, "layers.1.mlp.down_proj": 8},
            "alpha_pattern": {"q_proj": 3, r"layers\.0\..*down_proj": 5},
        },
    ),
    "layers": ("qwen3", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]}),
    "one layer, with its list's name": (
        "llama",
        {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    ),
    "regular expression": ("llama", {"target_modules": r".*\.layers\.0\.self_attn\.(q|k)_proj"}),
    "excluded": ("llama", {"target_modules": "all-linear", "exclude_modules": ["down_proj"]}),
    "head trained whole": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied embeddings trained whole": ("gemma2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "tied embeddings and head, both whole": (
        "granite",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "norms trained whole": ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["ln_f"], "fan_in_fan_out": True}),
    "DoRA, rank-stabilised": ("glm", {"target_modules": "all-linear", "use_dora": True, "use_rslora": True}),
    "adapter on the head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "DoRA on Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "use_dora": True, "fan_in_fan_out": True}),
    "gaussian start": ("llama", {"target_modules": ["o_proj"], "init_lora_weights": "gaussian"}),
}


def made_by_peft(family: str, settings: dict[str, Any], folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
        model = shaken(peft.get_peft_model(families.build(family), config)).eval()
        model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", PEFT_SETTINGS)
def test_adapters_made_by_peft_load_with_the_same_logits(case: str, tmp_path: Path) -> None:
    family, settings = PEFT_SETTINGS[case]
    theirs = made_by_peft(family, settings, tmp_path / "theirs")
    ours = families.build(family)
    load_adapter(ours, tmp_path / "theirs")
    assert close(logits(ours), logits(theirs))
    with without_adapters(ours):
        assert torch.equal(logits(ours), logits(families.build(family)))
    write_adapter(tmp_path / "again", ours)
    assert close(logits(in_peft(families.build(family), tmp_path / "again")), logits(theirs))
    merged = merge(copy.deepcopy(ours))
    assert torch.allclose(logits(merged), logits(theirs), atol=1e-5)
