"""Old names of modules work on converted models, and adapters that were trained on the old checkpoint compute the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import luthier.models
from luthier.errors import UserError
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.insert import insert_adapter
from luthier.models.adapters.lora import adapted_layers
from luthier.models.legacy.mapping import place_of
from luthier.models.legacy.names import rules_of
from luthier.models.methods import apply_method, load_adapter
from luthier.recipe.schema import Freeze, LoRA
from tests.models.legacy.cases import copy_of, expected, fixture, loss_of

TARGETS = {
    "chatglm2": ("query_key_value", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}),
    "chatglm3": ("dense_h_to_4h", {"mlp.gate_up_proj"}),
    "baichuan1_13b": ("W_pack", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}),
    "baichuan2_7b": ("W_pack", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}),
    "baichuan2_13b": ("W_pack", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}),
    "internlm2": ("wqkv", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}),
    "qwen1": ("c_proj", {"self_attn.o_proj", "mlp.down_proj"}),
    "yuan2": ("v_proj", {"self_attn.v_proj"}),
}
"""Fixture → an old name, and what it is now."""

FUSED = {
    "chatglm3": "transformer.encoder.layers.{}.self_attention.query_key_value",
    "baichuan2_7b": "model.layers.{}.self_attn.W_pack",
    "baichuan1_13b": "model.layers.{}.self_attn.W_pack",
    "internlm2": "model.layers.{}.attention.wqkv",
    "qwen1": "transformer.h.{}.attn.c_attn",
    "yuan2": "model.layers.{}.self_attn.k_proj",
    "deepseek_moe": "model.layers.{}.self_attn.q_proj",
}
"""Fixture → the module that old adapters were trained on."""


def adapted(name: str, shared: Path, target: str | tuple[str, ...]) -> set[str]:
    model = luthier.models.load(str(fixture(shared, name)))
    if isinstance(target, tuple):
        apply_method(model, LoRA(rank=2, target=target), seed=0)
    else:  # an expression, as adapters have them
        insert_adapter(model, AdapterConfig(rank=2, target=target), seed=0)
    return {layer.partition("layers.")[2].partition(".")[2] for layer in adapted_layers(model)}


@pytest.mark.parametrize("name", TARGETS)
def test_an_old_name_is_a_target(name: str, shared: Path) -> None:
    old, native = TARGETS[name]
    assert adapted(name, shared, target=(old,)) == native
    assert adapted(name, shared, target=rf".*\.{old}") == native
    assert adapted(name, shared, target=(old, "o_proj")) == native | {"self_attn.o_proj"}


def test_old_and_native_names_mix_and_unknown_ones_are_refused(shared: Path) -> None:
    with pytest.raises(UserError, match="no module of this model is called `query_key_values`"):
        adapted("chatglm3", shared, target=("query_key_values",))
    model = luthier.models.load(str(fixture(shared, "chatglm3")))
    trained = apply_method(model, Freeze(layers=0, modules=("dense_4h_to_h", "output_layer")), seed=0)
    assert set(trained.parameters) == {
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "lm_head.weight",
    }


def test_a_rank_given_for_an_old_name_holds_for_its_parts(shared: Path) -> None:
    model = luthier.models.load(str(fixture(shared, "baichuan2_7b")))
    insert_adapter(model, AdapterConfig(rank=2, target=("W_pack", "o_proj"), rank_pattern={"W_pack": 6}), seed=0)
    ranks = {name.rpartition(".")[2]: layer.rank for name, layer in adapted_layers(model).items()}
    assert ranks == {"q_proj": 6, "k_proj": 6, "v_proj": 6, "o_proj": 2}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("pickled", [False, True])
def test_an_old_adapter_computes_what_it_did(name: str, pickled: bool, shared: Path, tmp_path: Path) -> None:
    """The adapter on the fused module is the same function as the fused weight plus s B A, converted."""
    source, rank, scale = fixture(shared, name), 3, 2.0
    changed = copy_of(source, tmp_path / "changed")
    weights, adapter = load_file(changed / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(0)
    for layer in range(json.loads((source / "config.json").read_text()).get("num_hidden_layers", 2)):
        module = FUSED[name].format(layer)
        rows, columns = weights[f"{module}.weight"].shape
        a, b = (torch.randn(shape, generator=generator) * 0.1 for shape in ((rank, columns), (rows, rank)))
        adapter |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        weights[f"{module}.weight"] += scale * b @ a
    save_file(weights, changed / "model.safetensors")
    (tmp_path / "adapter").mkdir()
    save = (
        (lambda tensors: torch.save(tensors, tmp_path / "adapter" / "adapter_model.bin"))
        if pickled
        else lambda tensors: save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    )
    save(adapter)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": scale * rank, "bias": "none"}
    settings |= {"target_modules": [FUSED[name].rpartition(".")[2]], "fan_in_fan_out": False, "lora_dropout": 0.1}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    model, values = luthier.models.load(str(source)), expected(source)
    with torch.no_grad():
        plain = float(loss_of(model, values))
        load_adapter(model, tmp_path / "adapter")
        wanted = float(loss_of(luthier.models.load(str(changed)), values))
        assert float(loss_of(model, values)) == pytest.approx(wanted, rel=1e-5)
    assert abs(wanted - plain) > 1e-3


def test_a_model_that_was_not_converted_has_no_old_names() -> None:
    model = luthier.models.load("tiny")
    assert rules_of(model) == ()
    assert place_of("model.layers.0.self_attn.q_proj.weight", rules_of(model)) is None
    with pytest.raises(UserError, match="no module of this model is called `W_pack`"):
        apply_method(model, LoRA(target=("W_pack",)), seed=0)
