"""DeepSeek-MoE: the experts it chooses, and both ways of weighing them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import luthier.models
from luthier.errors import UserError
from luthier.models.hub import fetch
from tests.models.legacy.cases import copy_of, expected, fixture


def test_the_same_experts_are_chosen(shared: Path) -> None:
    folder = fixture(shared, "deepseek_moe")
    model, values, chosen = luthier.models.load(str(folder)), expected(folder), {}
    for layer in (1, 2):
        gate = model.model.layers[layer].mlp.gate
        gate.register_forward_hook(lambda _gate, _inputs, output, layer=layer: chosen.update({layer: output[2]}))
    for number in range(3):
        with torch.no_grad():
            model(values[f"single.{number}.input_ids"])
        for layer in (1, 2):
            assert torch.equal(chosen[layer].sort(-1).values, values[f"single.{number}.layer{layer}.topk_experts_sorted"])


def test_probabilities_are_divided_by_their_sum_where_the_config_says_so(shared: Path, tmp_path: Path) -> None:
    source = fixture(shared, "deepseek_moe")
    folder = copy_of(source, tmp_path / "normalised")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"norm_topk_prob": True}))
    states = torch.randn(5, config["hidden_size"], generator=torch.Generator().manual_seed(0))
    for place, renormalised in ((folder, True), (source, False)):
        gate = luthier.models.load(str(place)).model.layers[1].mlp.gate
        logits, weights, _experts = gate(states)
        best = logits.softmax(-1).topk(config["num_experts_per_tok"]).values
        wanted = best / best.sum(-1, keepdim=True) if renormalised else best
        assert torch.allclose(weights.sort(-1, descending=True).values, wanted, atol=1e-6)


def test_other_routers_are_refused(shared: Path, tmp_path: Path) -> None:
    folder = copy_of(fixture(shared, "deepseek_moe"), tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"scoring_func": "sigmoid"}))
    with pytest.raises(UserError, match="`scoring_func: sigmoid`"):
        fetch(str(folder))
