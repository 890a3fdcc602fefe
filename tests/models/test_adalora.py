"""AdaLoRA computes, chooses and writes what PEFT's does."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.adalora import Allocator, schedule_of
from luthier.models.adapters.format import CONFIG_FILE, read_config, write_adapter
from luthier.models.adapters.lora import adapted_layers
from luthier.models.adapters.merge import merge
from luthier.models.low_rank import allocator_of
from luthier.models.methods import apply_method, load_adapter
from luthier.recipe.schema import AdaLoRA, LoRA
from tests.families import build

TOKENS = torch.arange(3, 27)[None] * 7 % 256
METHOD = AdaLoRA(rank=2, start_rank=6, alpha=8, every=2, warmup=0.2, settle=0.3)
STEPS = 20


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def made(family: str = "llama") -> PreTrainedModel:
    model = build(family)
    apply_method(model, METHOD, seed=0)
    allocator_of(model, METHOD, STEPS)
    return model


def shaken(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def in_peft(base: PreTrainedModel, folder: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, str(folder), **options).eval()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_the_start_is_the_base_and_the_folder_loads_in_peft(family: str, tmp_path: Path) -> None:
    model = made(family)
    assert torch.allclose(logits(model), logits(build(family)), atol=1e-5)
    write_adapter(tmp_path, shaken(model))
    assert not torch.allclose(logits(model), logits(build(family)), atol=1e-2)
    assert torch.allclose(logits(in_peft(build(family), tmp_path)), logits(model), atol=1e-4)
    again = build(family)
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert torch.allclose(logits(merge(again)), logits(model), atol=1e-4)
    content = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert (content["peft_type"], content["init_r"], content["target_r"], content["total_step"]) == ("ADALORA", 6, 2, STEPS)


def test_the_penalty_is_peft_s(tmp_path: Path) -> None:
    model = shaken(made())
    write_adapter(tmp_path, model)
    theirs = in_peft(build("llama"), tmp_path, is_trainable=True)
    with torch.no_grad():
        loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
        expected = theirs(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss - loss
    penalty = Allocator(model, schedule_of(METHOD, STEPS)).penalty()
    assert float(penalty.detach()) == pytest.approx(float(expected), rel=1e-4)
    penalty.backward()
    assert all(layer.lora_A.grad is not None and layer.lora_B.grad is not None for layer in adapted_layers(model).values())


def test_ranks_are_taken_away_as_by_peft(tmp_path: Path) -> None:
    """Both see the same values and gradients at every step, and switch the same directions off."""
    model = shaken(made())
    write_adapter(tmp_path, model)
    theirs = in_peft(build("llama"), tmp_path, is_trainable=True).base_model
    ours = Allocator(model, schedule_of(METHOD, STEPS))
    others = {name.removesuffix(".default"): p for name, p in theirs.model.named_parameters() if "lora_" in name}
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert own.keys() == others.keys()
    left = []
    for step in range(1, STEPS + 1):
        generator = torch.Generator().manual_seed(step)
        gradients = {name: torch.randn(p.shape, generator=generator) for name, p in own.items()}
        for name, parameter in others.items():
            parameter.grad = gradients[name].clone()
        ours.observe(gradients, step)
        off = ours.choose(step)
        theirs.update_and_allocate(step)
        with torch.no_grad():
            for name, place in off.items():
                own[name].masked_fill_(place, 0.0)
        assert all(torch.equal(own[name], others[name]) for name in own), step
        left.append(sum(int((p != 0).sum()) for name, p in own.items() if name.endswith("lora_E")))
    assert left[0] == 14 * 6
    assert left[-1] == 14 * 2
    assert left == sorted(left, reverse=True)


def test_gradients_that_are_not_finite_teach_nothing() -> None:
    model = shaken(made())
    allocator = Allocator(model, schedule_of(METHOD, STEPS))
    gradients = {name: torch.ones_like(p) for name, p in model.named_parameters() if p.requires_grad}
    allocator.observe(gradients, 1)
    before = {name: value.clone() for name, value in allocator.state().items()}
    allocator.observe({name: torch.full_like(value, torch.nan) for name, value in gradients.items()}, 2)
    assert all(torch.equal(before[name], value) for name, value in allocator.state().items())


def test_an_adapter_that_peft_has_trimmed_loads_and_is_written_again(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.AdaLoraConfig(
            init_r=5,
            target_r=2,
            total_step=10,
            tinit=1,
            tfinal=2,
            lora_alpha=8,
            target_modules=["q_proj", "up_proj"],
            task_type="CAUSAL_LM",
        )
        theirs = peft.get_peft_model(build("llama"), config)
        shaken(theirs)
        for step in range(1, 9):
            theirs(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
            theirs.base_model.update_and_allocate(step)
            theirs.zero_grad()
        theirs.eval().save_pretrained(tmp_path / "theirs")
    ours = build("llama")
    load_adapter(ours, tmp_path / "theirs")
    assert set(read_config(tmp_path / "theirs").rank_pattern.values()) != {5}
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-4)
    write_adapter(tmp_path / "again", ours)
    assert torch.allclose(logits(in_peft(build("llama"), tmp_path / "again")), logits(theirs), atol=1e-4)


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none is left to take ranks away"):
        schedule_of(AdaLoRA(warmup=0.3, settle=0.6), 2)
    write_adapter(tmp_path, made())
    with pytest.raises(UserError, match="an adapter of method `adalora`"):
        apply_method(build("llama"), LoRA(), seed=0, adapter=tmp_path)
