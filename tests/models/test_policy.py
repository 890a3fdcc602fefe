"""Packed, padded and one-by-one execution give the same states and gradients; a policy saves and loads ordinary folders."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.insert import insert_adapter
from luthier.models.methods import apply_method
from luthier.models.policy import SLACK, WASTE, Policy, rectangles, save_model
from luthier.recipe.schema import Freeze, Full, LoRA
from tests.families import CONFIGS, MATRIX, build
from tests.models.batches import ragged

LENGTHS = [33, 7, 1, 60, 20, 21, 5]


def one_by_one(policy: Policy, batch) -> Tensor:  # type: ignore[no-untyped-def]
    bounds = batch.cu_seqlens.tolist()
    spans = itertools.pairwise(bounds)
    return torch.cat(
        [policy.model.base_model(input_ids=batch.tokens[a:b][None], use_cache=False).last_hidden_state[0] for a, b in spans]
    )


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_is_padded_is_one_by_one(family: str) -> None:
    policy, batch = Policy(build(family)), ragged(LENGTHS)
    with torch.no_grad():
        apart = one_by_one(policy, batch)
        for packing in (True, False):
            assert (policy.hidden(batch, packing=packing) - apart).abs().max() <= 1e-5


@pytest.mark.parametrize("family", MATRIX)
def test_gradients_do_not_depend_on_the_layout(family: str) -> None:
    gradients = []
    for packing in (True, False):
        model = build(family)
        insert_adapter(model, AdapterConfig(rank=4, alpha=8), seed=0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(len(name)))
        policy = Policy(model)
        policy.hidden(ragged(LENGTHS), packing=packing).sin().sum().backward()
        gradients.append({name: p.grad for name, p in policy.trainable.parameters.items()})
    for name, packed in gradients[0].items():
        assert torch.linalg.norm(packed - gradients[1][name]) <= 1e-5 * torch.linalg.norm(packed), name


def test_a_packed_row_gets_no_mask_and_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(build("llama"))
    seen: dict[str, object] = {}
    forward = policy.model.base_model.forward

    def spy(**inputs: object) -> object:
        seen.update(inputs)
        return forward(**inputs)

    monkeypatch.setattr(policy.model.base_model, "forward", spy)
    policy.hidden(ragged(LENGTHS), packing=True)
    boundaries = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    assert set(seen) == {"input_ids", "position_ids", "use_cache"} | boundaries
    assert seen["use_cache"] is False


LONGROPE = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 8,
    "long_factor": [3.0] * 8,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}


@pytest.mark.parametrize("rope", [LONGROPE, DYNAMIC], ids=lambda rope: rope["rope_type"])
def test_positions_that_follow_the_longest_segment_do_not_couple_segments(rope: dict[str, Any]) -> None:
    policy = Policy(build("llama", max_position_embeddings=32, rope_parameters=rope | {"rope_theta": 100.0}))
    for lengths in (LENGTHS, [20, 30, 7]):
        batch = ragged(lengths)
        with torch.no_grad():
            apart = one_by_one(policy, batch)
            for packing in (True, False):
                assert (policy.hidden(batch, packing=packing) - apart).abs().max() <= 1e-5
    assert policy.computed_tokens(ragged([30, 20]), packing=True) == 50


def test_a_saved_model_caches_when_it_generates(tmp_path: Path) -> None:
    Policy(model := build("llama")).save(tmp_path)
    assert model.config.use_cache is False
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.use_cache is True


def test_rectangles_hold_every_segment_once_and_little_padding() -> None:
    lengths = torch.randint(1, 400, (300,), generator=torch.Generator().manual_seed(3)).tolist()
    groups = rectangles(lengths)
    assert sorted(row for group in groups for row in group) == list(range(300))
    for group in groups:
        area = max(lengths[row] for row in group) * len(group)
        assert area - sum(lengths[row] for row in group) <= max(SLACK, WASTE * area)
    assert len(rectangles([100] * 50)) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "bloom"])
@pytest.mark.parametrize("method", [Full(), Freeze(layers=1, head=True)], ids=lambda method: method.type)
def test_a_full_policy_is_saved_as_a_transformers_folder(family: str, method: Full | Freeze, tmp_path: Path) -> None:
    policy = Policy(model := build(family), apply_method(model, method, seed=0))
    masters = {name: value.detach() * 1.01 for name, value in policy.trainable.parameters.items()}
    policy.save(tmp_path, masters)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, parameter in plain.named_parameters():
        expected = masters.get(name, model.get_parameter(name))
        assert torch.equal(parameter, expected), name
    assert (plain.get_output_embeddings().weight is plain.get_input_embeddings().weight) == model.config.tie_word_embeddings
    policy.load(tmp_path)
    for name, parameter in policy.trainable.parameters.items():
        assert torch.equal(parameter, masters[name]), name


def test_an_adapter_keeps_float32_masters_of_a_bfloat16_policy(tmp_path: Path) -> None:
    policy = Policy(model := build("llama").to(torch.bfloat16), apply_method(model, LoRA(rank=2), seed=1))
    assert {p.dtype for p in policy.trainable.parameters.values()} == {torch.bfloat16}
    masters = {name: torch.randn_like(p, dtype=torch.float32) for name, p in policy.trainable.parameters.items()}
    policy.save(tmp_path, masters)
    again = policy.read(tmp_path)
    assert list(again) == list(masters)
    assert all(torch.equal(again[name], value) for name, value in masters.items())
    policy.load(tmp_path)
    assert all(torch.equal(p, masters[name].bfloat16()) for name, p in policy.trainable.parameters.items())


def test_bfloat16_policies_pass_their_checks() -> None:
    for family in MATRIX:
        policy = Policy(build(family).to(torch.bfloat16))
        assert policy.isolation.ok == (family != "bloom")
        assert not policy.notes


def test_the_checks_leave_the_model_s_mode_alone() -> None:
    model = build("llama").train()
    model.model.layers[0].eval()
    Policy(model)
    assert model.training
    assert not model.model.layers[0].mlp.training
    assert model.model.layers[1].mlp.training


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    save_model(build("llama"), tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.vocab_size == 256


def test_the_description_says_what_is_trained_and_how() -> None:
    line = Policy(model := build("opt"), apply_method(model, LoRA(rank=2), seed=0)).describe()
    assert "parameters are trained" in line
    assert "padded (packed segments of OPTForCausalLM see each other" in line
