"""Adapters on fused experts: PEFT's numbers and files, the base's function at the start, and what is left alone or refused."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.errors import UserError
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.experts import LoRAExperts, expert_layers
from luthier.models.adapters.format import CONFIG_FILE, write_adapter
from luthier.models.adapters.lora import adapted_layers, without_adapters
from luthier.models.adapters.merge import merge
from luthier.models.adapters.targets import target_experts, target_layers
from luthier.models.methods import apply_method, load_adapter
from luthier.models.mixture import routers
from luthier.models.policy import save_model
from luthier.recipe.schema import Freeze, Full, LoRA
from tests.families import MIXTURES, build

TOKENS = torch.arange(3, 24)[None]


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


def learnt(model: Any) -> Any:
    """Move every trained number, as far as the weights are large."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def adapted(family: str, **settings: Any) -> Any:
    model = build(family)
    apply_method(model, LoRA(rank=3, **settings), seed=0)
    return model


def in_peft(family: str, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(build(family), str(folder)).eval()


@pytest.mark.parametrize("family", MIXTURES)
def test_an_adapter_begins_at_the_base_and_can_be_turned_off(family: str) -> None:
    base = logits(build(family))
    model = adapted(family)
    torch.testing.assert_close(logits(model), base, atol=1e-5, rtol=0)
    assert all(layer._grouped for layer in expert_layers(model).values())
    learnt(model)
    assert (logits(model) - base).abs().max() > 0.1
    with without_adapters(model):
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize(
    "settings", [{}, {"rslora": True, "rank_pattern": {"gate_up_proj": 5}, "alpha_pattern": {"down_proj": 5}}]
)
@pytest.mark.parametrize("family", MIXTURES)
def test_peft_reads_what_is_written(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = learnt(adapted(family, **settings))
    write_adapter(tmp_path, model)
    torch.testing.assert_close(logits(in_peft(family, tmp_path)), logits(model), atol=1e-4, rtol=0)
    again = build(family)
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("family", MIXTURES)
def test_what_peft_writes_is_read(family: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "target_modules": ["q_proj", "o_proj"],
        "target_parameters": ["experts.down_proj", "experts.gate_up_proj"],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = learnt(peft.get_peft_model(build(family), peft.LoraConfig(r=4, task_type="CAUSAL_LM", **fields)).eval())
        theirs.save_pretrained(tmp_path)
    ours = build(family)
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("target", [("experts.down_proj",), ("gate_up_proj",), r".*layers\.1\..*experts.*"])
def test_some_of_the_experts_alone(target: Any, tmp_path: Path) -> None:
    model = learnt(adapted("mixtral", target=target))
    assert not adapted_layers(model)
    write_adapter(tmp_path, model)
    torch.testing.assert_close(logits(in_peft("mixtral", tmp_path)), logits(model), atol=1e-4, rtol=0)


def test_names_of_before_experts_were_fused_go_on_meaning_them() -> None:
    def parts(model: Any) -> set[str]:
        return {part for layer in expert_layers(model).values() for part, _, _ in layer.parts()}

    assert parts(adapted("qwen3_moe", target=("q_proj", "gate_proj", "up_proj", "down_proj"))) == {"gate_up_proj", "down_proj"}
    assert parts(adapted("mixtral", target=("w2",))) == {"down_proj"}
    assert parts(adapted("mixtral", exclude=("experts",))) == set()
    assert list(expert_layers(adapted("mixtral", layers=(1,)))) == ["model.layers.1.mlp.experts"]


@pytest.mark.parametrize("family", MIXTURES)
def test_routers_get_no_adapter_and_stay(family: str) -> None:
    model = adapted(family)
    found = routers(model)
    assert found
    assert not any(name.startswith(f"{router}.") for name in adapted_layers(model) for router in found)
    for method in (Full(), Freeze(layers=2)):
        whole = build(family)
        trained = apply_method(whole, method, seed=0)
        assert not any(value.requires_grad for router in routers(whole).values() for value in router.parameters())
        assert any("train_router" in note for note in trained.notes)


@pytest.mark.parametrize("family", MIXTURES)
def test_routers_are_trained_where_it_is_asked_for(family: str, tmp_path: Path) -> None:
    for method in (Full(train_router=True), Freeze(layers=2, train_router=True)):
        whole = build(family)
        apply_method(whole, method, seed=0)
        assert all(value.requires_grad for router in routers(whole).values() for value in router.parameters())
    model = learnt(adapted(family, train_router=True))
    assert all(value.requires_grad for router in routers(model).values() for value in router.parameters())
    write_adapter(tmp_path, model)
    torch.testing.assert_close(logits(in_peft(family, tmp_path)), logits(model), atol=1e-4, rtol=0)


def test_a_model_without_routers_is_told() -> None:
    for method in (Full(train_router=True), LoRA(train_router=True)):
        with pytest.raises(UserError, match="no routers"):
            apply_method(build("llama"), method, seed=0)


@pytest.mark.parametrize("family", MIXTURES)
def test_merging_folds_the_adapters_in(family: str, tmp_path: Path) -> None:
    model = learnt(adapted(family))
    expected = logits(model)
    merge(model)
    assert not expert_layers(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
    save_model(model, tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [{"dora": True}, {"init": "pissa"}, {"init": "olora"}], ids=["dora", "pissa", "olora"])
def test_kinds_without_a_form_for_experts_leave_them_out_and_say_so(settings: dict[str, Any], tmp_path: Path) -> None:
    model = build("deepseek")
    trained = apply_method(model, LoRA(rank=3, **settings), seed=0)
    assert any("the experts get no adapter" in note for note in trained.notes)
    assert ("for PEFT takes them for experts" in trained.notes[0]) == bool(settings.get("dora"))
    assert not expert_layers(model)
    write_adapter(tmp_path, learnt(model))
    torch.testing.assert_close(logits(in_peft("deepseek", tmp_path)), logits(model), atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="no form for the experts"):
        apply_method(build("deepseek"), LoRA(rank=3, target=("gate_up_proj",), **settings), seed=0)
    if settings.get("dora"):
        with pytest.raises(UserError, match="nor PEFT for gate_proj"):
            apply_method(build("deepseek"), LoRA(rank=3, target=r".*shared_experts\.gate_proj", dora=True), seed=0)


def test_experts_of_an_unknown_form_are_adapted_by_their_own_code() -> None:
    """The grouped pass is held against the module; another activation is not taken for the usual one."""
    fast, slow = learnt(adapted("mixtral")), learnt(adapted("mixtral"))
    for layer in expert_layers(slow).values():
        layer._grouped = False
    torch.testing.assert_close(logits(slow), logits(fast), atol=1e-5, rtol=0)
    odd = adapted("mixtral")
    for layer in expert_layers(odd).values():
        layer.base_layer._apply_gate = lambda rows: rows.chunk(2, -1)[0]
        layer.base_layer.config._experts_implementation = "eager"  # which has an activation of its own
    logits(odd)
    assert not any(layer._grouped for layer in expert_layers(odd).values())
    slow.train()
    for layer in expert_layers(slow).values():
        layer.dropout = 0.5
    with pytest.raises(UserError, match="no room for dropout"):
        slow(input_ids=TOKENS)


def test_gradients_are_those_of_the_folded_weights() -> None:
    found = []
    for grouped in (True, False):
        model = learnt(adapted("mixtral"))
        for layer in expert_layers(model).values():
            layer._grouped = grouped
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        found.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-5, rtol=1e-4, msg=name)


def test_first_values_are_those_of_a_linear_layer() -> None:
    layer = next(iter(expert_layers(adapted("mixtral")).values()))
    assert isinstance(layer, LoRAExperts)
    for _, adapter, _ in layer.parts():
        assert not adapter.lora_B.any()
        bound = adapter.lora_A.shape[1] ** -0.5
        assert 0.9 * bound < adapter.lora_A.abs().max() <= bound


def test_a_file_with_dropout_and_experts_is_one_that_peft_takes(tmp_path: Path) -> None:
    write_adapter(tmp_path, learnt(adapted("mixtral", dropout=0.1)))
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["lora_dropout"] == 0
    in_peft("mixtral", tmp_path)


def test_a_misspelt_target_is_named() -> None:
    with pytest.raises(UserError, match=re.escape("`gate_up_porj`")):
        adapted("mixtral", target=("gate_up_porj",))


@pytest.mark.parametrize("kind", ["afmoe", "llama4_text", "phimoe", "qwen3_next"])
def test_routers_that_are_linear_layers_or_hold_one_are_no_linear_layers_of_the_model(kind: str) -> None:
    """On the `meta` device, for what a family is called does not say what its router is made of."""
    config = AutoConfig.for_model(kind)
    config.num_hidden_layers = 4
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:4]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = routers(model)
    assert any(isinstance(part, torch.nn.Linear) for router in found.values() for part in router.modules())
    layers = target_layers(model, AdapterConfig.from_method(LoRA()))
    assert not any(f"{name}.".startswith(f"{router}.") for name in layers for router in found)
    assert target_experts(model, AdapterConfig.from_method(LoRA()))
