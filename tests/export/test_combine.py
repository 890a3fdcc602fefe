"""Several adapters as one: exact where it is said to be, PEFT's numbers throughout, and never through the base model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, get_args

import peft
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.export.combine import PRUNING, CombineMethod, combine
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.contents import read_contents
from luthier.models.adapters.experts import expert_layers
from luthier.models.adapters.format import read_config, write_adapter
from luthier.models.adapters.insert import insert_adapter
from luthier.models.adapters.lora import adapted_layers
from luthier.models.methods import load_adapter
from tests.families import build

TOKENS = torch.arange(3, 27)[None] * 7 % 256
WEIGHTS = (0.7, -0.4)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def adapter(folder: Path, seed: int, family: str = "llama", **settings: Any) -> Path:
    model = build(family)
    insert_adapter(model, AdapterConfig(**{"rank": 4, "alpha": 6, **settings}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    write_adapter(folder, model)
    return folder


def updates(folder: Path, family: str = "llama") -> dict[str, Tensor]:
    model = build(family)
    load_adapter(model, folder)
    return {name: (layer.scaling * layer.lora_B @ layer.lora_A).detach() for name, layer in adapted_layers(model).items()}


def by_peft(base: PreTrainedModel, first: Path, second: Path, method: str, density: float) -> Any:
    """The same through a whole model in PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(base, str(first), adapter_name="first")
        model.load_adapter(str(second), adapter_name="second")
        options = {"density": density} if method in PRUNING else {}
        model.add_weighted_adapter(["first", "second"], list(WEIGHTS), "both", combination_type=method, **options)
        model.set_adapter("both")
    return model.eval()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", get_args(CombineMethod))
def test_each_method_gives_what_peft_gives_with_the_model_loaded(method: CombineMethod, family: str, tmp_path: Path) -> None:
    first, second = adapter(tmp_path / "a", 1, family), adapter(tmp_path / "b", 2, family)
    density = 1.0 if method.startswith("dare") else 0.5  # what is dropped at random differs with everything else that is drawn
    out = combine([first, second], tmp_path / "out", weights=WEIGHTS, method=method, density=density)
    ours = build(family)
    load_adapter(ours, out)
    assert torch.allclose(logits(ours), logits(by_peft(build(family), first, second, method, density)), atol=1e-4)


def test_what_is_dropped_at_random_follows_the_seed(tmp_path: Path) -> None:
    pair = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)]
    found = [updates(combine(pair, tmp_path / f"{n}", method="dare_linear", seed=seed)) for n, seed in enumerate((3, 3, 4))]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_cat_is_the_exact_sum_over_other_ranks_layers_and_scalings(tmp_path: Path) -> None:
    first = adapter(tmp_path / "a", 1, rank=3, rslora=True, target=("q_proj", "down_proj"))
    second = adapter(tmp_path / "b", 2, rank_pattern={"v_proj": 2}, target=("q_proj", "v_proj"))
    out = combine([first, second], tmp_path / "out", weights=WEIGHTS)
    one, two, both = updates(first), updates(second), updates(out)
    assert set(both) == set(one) | set(two)
    for name, found in both.items():
        expected = sum(weight * part[name] for weight, part in zip(WEIGHTS, (one, two), strict=True) if name in part)
        assert torch.allclose(found, expected, atol=1e-5), name


def test_svd_is_the_best_approximation_at_a_rank(tmp_path: Path) -> None:
    first, second = adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)
    out = combine([first, second], tmp_path / "out", method="svd", rank=3, weights=WEIGHTS)
    assert read_config(out).rank == 3
    one, two, both = updates(first), updates(second), updates(out)
    for name, found in both.items():
        whole = WEIGHTS[0] * one[name] + WEIGHTS[1] * two[name]
        tail = torch.linalg.svdvals(whole)[3:].square().sum().sqrt()
        assert float(torch.linalg.matrix_norm(whole - found)) == pytest.approx(float(tail), rel=1e-3)


def test_without_weights_cat_stacks_and_the_others_average(tmp_path: Path) -> None:
    first, second = adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)
    stacked, mean = (
        updates(combine([first, second], tmp_path / "cat")),
        updates(combine([first, second], tmp_path / "svd", method="svd", rank=8)),
    )
    for name, found in stacked.items():
        assert torch.allclose(found, 2 * mean[name], atol=1e-4)


def test_what_cannot_be_combined_is_said(tmp_path: Path) -> None:
    first = adapter(tmp_path / "a", 1)
    with pytest.raises(UserError, match="at least two"):
        combine([first], tmp_path / "out")
    with pytest.raises(UserError, match="3 weights for 2"):
        combine([first, first], tmp_path / "out", weights=[1, 2, 3])
    with pytest.raises(UserError, match="of one rank, and these have 4, 2"):
        combine([first, adapter(tmp_path / "b", 2, rank=2)], tmp_path / "out", method="ties")
    with pytest.raises(UserError, match="DoRA cannot be added"):
        combine([first, adapter(tmp_path / "c", 2, dora=True)], tmp_path / "out")
    with pytest.raises(UserError, match="trained whole cannot be added"):
        combine([first, adapter(tmp_path / "d", 2, modules_to_save=("lm_head",), target=("q_proj",))], tmp_path / "out")
    model = build("llama", intermediate_size=192)
    insert_adapter(model, AdapterConfig(rank=4), seed=0)
    write_adapter(tmp_path / "e", model)
    with pytest.raises(UserError, match="of one base model"):
        combine([first, tmp_path / "e"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="not empty"):
        combine([first, first], first)


@pytest.mark.parametrize("family", ["mixtral", "deepseek"])
def test_experts_are_combined_one_by_one(family: str, tmp_path: Path) -> None:
    """Their updates add up as those of layers do, at unlike ranks too, and the result is what PEFT loads."""

    def fused(folder: Path) -> dict[str, Tensor]:
        model = build(family)
        load_adapter(model, folder)
        weights = {
            f"{name}.{part}": getattr(layer.base_layer, part) for name, layer in expert_layers(model).items() for part in ranks
        }
        merged = [layer.effective_weights() for layer in expert_layers(model).values()]
        new = dict(zip(weights, (one[part] for one in merged for part in ranks), strict=True))
        return {name: (new[name] - weights[name]).detach() for name in weights}

    ranks = ("gate_up_proj", "down_proj")
    first = adapter(tmp_path / "a", 1, family, experts=True, rank_pattern={"gate_up_proj": 2}, rslora=True)
    second = adapter(tmp_path / "b", 2, family, experts=True)
    out = combine([first, second], tmp_path / "out", weights=WEIGHTS, method="cat")
    (one, other), found = (fused(first), fused(second)), fused(out)
    assert found
    for name, value in found.items():
        torch.testing.assert_close(value, WEIGHTS[0] * one[name] + WEIGHTS[1] * other[name], atol=1e-5, rtol=1e-4)
    ours = build(family)
    load_adapter(ours, out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(build(family), str(out)).eval()
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-4, rtol=0)
    combine([second, second], tmp_path / "half", method="ties")
    assert any("experts" in name for name in read_contents(tmp_path / "half").experts)
