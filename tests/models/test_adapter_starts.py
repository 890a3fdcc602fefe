"""PiSSA, OLoRA, LoftQ and EVA begin where PEFT begins, train the same function, and are written as plain adapters of the untouched base."""

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

from luthier.data.batch import Drawn
from luthier.errors import UserError
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.eva import batches_of, find_directions
from luthier.models.adapters.format import CONFIG_FILE, load_values, write_adapter
from luthier.models.adapters.insert import insert_adapter
from luthier.models.adapters.lora import adapted_layers, without_adapters
from luthier.models.adapters.merge import merge
from luthier.models.adapters.start import begin_inside, principal_part
from luthier.models.linear import dense_weight, is_quantised
from luthier.models.loading import load_model
from luthier.models.methods import apply_method, load_adapter
from luthier.recipe.schema import LoRA, Model, Quantization
from tests.families import build, save
from tests.stores import build_store, drawn_whole

INSIDE = ("pissa", "pissa_niter_16", "olora")
KINDS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}
TOKENS = torch.arange(3, 27)[None] * 7 % 256


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def begun(family: str, init: str, **settings: Any) -> PreTrainedModel:
    model = build(family)
    insert_adapter(model, AdapterConfig(rank=4, alpha=6, **settings), seed=0)
    begin_inside(model, init, seed=3)  # type: ignore[arg-type]
    return model


def shaken(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """Values as after some training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


def in_peft(base: PreTrainedModel, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, str(folder)).eval()


def by_peft(family: str, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fields = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
        return peft.get_peft_model(build(family), peft.LoraConfig(**fields)).eval()


@pytest.mark.parametrize("init", INSIDE)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_training_begins_exactly_at_the_base(family: str, init: str) -> None:
    model, base = begun(family, init), logits(build(family))
    assert torch.allclose(logits(model), base, atol=2e-4)
    layer = next(iter(adapted_layers(model).values()))
    assert torch.linalg.matrix_norm(layer.lora_B @ layer.lora_A) > 0.1
    with without_adapters(model):
        assert torch.equal(logits(model), base), "the frozen weights are untouched"


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_values_and_gradients_are_peft_s(init: str) -> None:
    ours, theirs = begun("llama", init), by_peft("llama", init_lora_weights=init)
    layers = {name.removeprefix("base_model.model."): m for name, m in theirs.named_modules() if hasattr(m, "lora_A")}
    for each in (ours, theirs):
        each(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    for name, layer in adapted_layers(ours).items():
        other = layers[name]
        for found, expected in ((layer.lora_A, other.lora_A["default"].weight), (layer.lora_B, other.lora_B["default"].weight)):
            assert torch.allclose(found, expected, atol=1e-5), name
            assert torch.linalg.norm(found.grad - expected.grad) <= 1e-3 * torch.linalg.norm(expected.grad), name


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_same_values_give_peft_s_logits(init: str) -> None:
    ours, theirs = shaken(begun("llama", init)), by_peft("llama", init_lora_weights=init)
    modules = dict(theirs.named_modules())
    with torch.no_grad():
        for name, layer in adapted_layers(ours).items():
            other = modules[f"base_model.model.{name}"]
            other.lora_A["default"].weight.copy_(layer.lora_A)
            other.lora_B["default"].weight.copy_(layer.lora_B)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", INSIDE)
def test_the_folder_is_a_plain_adapter_of_the_original_base(init: str, kind: str, tmp_path: Path) -> None:
    model = shaken(begun("llama", init, rank_pattern={"v_proj": 2}, alpha_pattern={"up_proj": 3.0}, **KINDS[kind]))
    write_adapter(tmp_path, model)
    assert not torch.allclose(logits(model), logits(build("llama")), atol=1e-2)
    assert torch.allclose(logits(in_peft(build("llama"), tmp_path)), logits(model), atol=1e-4)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["r"] == 8
    again = build("llama")
    load_adapter(again, tmp_path)
    assert torch.allclose(logits(again), logits(model), atol=1e-4)
    assert torch.allclose(logits(merge(again)), logits(model), atol=1e-4)
    assert torch.allclose(logits(merge(model)), logits(again), atol=1e-4)


@pytest.mark.parametrize("init", INSIDE)
def test_a_resumed_adapter_has_the_same_bits_without_a_decomposition(init: str, tmp_path: Path) -> None:
    method = LoRA(rank=4, init=init, rslora=True)  # type: ignore[arg-type]
    model = build("llama")
    apply_method(model, method, seed=0)
    write_adapter(tmp_path, shaken(model))
    resumed = build("llama")
    trained = apply_method(resumed, method, seed=0, saved=tmp_path)
    load_values(tmp_path, resumed)
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    after = {**dict(resumed.named_parameters()), **dict(resumed.named_buffers())}
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(trained.parameters) == 28


def test_the_fast_decomposition_is_near_the_whole_one() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 12, generator=generator) @ torch.randn(12, 80, generator=generator) / 5
    weight += 0.05 * torch.randn(96, 80, generator=generator)
    errors = []
    for rounds in (None, 4, 16):
        a, b = principal_part(weight, 8, 1.5, rounds=rounds)
        errors.append(float(torch.linalg.matrix_norm(weight - 1.5 * b @ a)))
    assert errors[1] <= errors[0] * 1.05
    assert errors[2] <= errors[0] * 1.01


def test_a_rank_beyond_the_layer_is_refused() -> None:
    with pytest.raises(UserError, match=r"rank 100 is more than the \d+ directions"):
        apply_method(build("llama"), LoRA(rank=100, init="pissa"), seed=0)


@pytest.mark.parametrize("alpha", [4.0, 16.0])
def test_loftq_begins_nearer_to_the_unquantised_model(alpha: float, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    save("llama", tmp_path)
    section = Model(path=str(tmp_path), quantization=Quantization(bits=4))
    model = load_model(section, dtype=torch.float32, device=torch.device("cpu"))
    whole, quantised = logits(build("llama")), logits(model)
    apply_method(model, LoRA(rank=8, alpha=alpha, init="loftq"), seed=0)
    assert torch.linalg.norm(logits(model) - whole) < 0.9 * torch.linalg.norm(quantised - whole)
    originals = dict(build("llama").requires_grad_(False).named_modules())
    for name, layer in adapted_layers(model).items():
        assert is_quantised(layer.base_layer)
        lost = originals[name].weight - dense_weight(layer.base_layer)  # type: ignore[operator]
        tail = torch.linalg.svdvals(lost.detach())[8:].square().sum().sqrt()
        left = torch.linalg.matrix_norm(lost - layer.scaling * (layer.lora_B @ layer.lora_A).detach())
        assert float(left) == pytest.approx(float(tail), rel=1e-3), name


def test_loftq_needs_a_quantised_base(tmp_path: Path) -> None:
    save("llama", tmp_path)
    model = load_model(Model(path=str(tmp_path)), dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(UserError, match="quantised base"):
        apply_method(model, LoRA(init="loftq"), seed=0)


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """24 rows of random tokens, in batches of 500."""
    monkeypatch.setattr("luthier.models.adapters.eva.BATCH_TOKENS", 500)
    return drawn_whole(build_store(tmp_path / "store", range(60, 84)))


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_eva_is_peft_s(rho: float, drawn: Drawn) -> None:
    config = AdapterConfig(rank=4, alpha=8)
    found = find_directions(build("llama"), config, [drawn], rho=rho)
    theirs = by_peft("llama", lora_alpha=8, init_lora_weights="eva", eva_config=peft.EvaConfig(rho=rho))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.initialize_lora_eva_weights(theirs, list(batches_of([drawn], supervised=round(8 * rho))), show_progress_bar=False)
    layers = {name.removeprefix("base_model.model."): m for name, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert set(found.values) == set(layers)
    for name, rows in found.values.items():
        assert torch.allclose(rows, layers[name].lora_A["default"].weight, atol=1e-5)
        rank, alpha = found.config.rank_and_alpha(name)
        assert alpha / rank == pytest.approx(layers[name].scaling["default"])
    if rho == 1:
        assert not found.config.rank_pattern


def test_eva_starts_saves_and_resumes_with_its_ranks(tmp_path: Path, drawn: Drawn) -> None:
    method = LoRA(rank=4, init="eva")
    model = build("qwen3")
    trained = apply_method(model, method, seed=0, drawn=[drawn])
    assert "EVA dealt out ranks" in trained.notes[0]
    assert torch.equal(logits(model), logits(build("qwen3"))), "B is zero"
    write_adapter(tmp_path, shaken(model))
    assert torch.allclose(logits(in_peft(build("qwen3"), tmp_path)), logits(model), atol=1e-4)
    resumed = build("qwen3")
    assert list(apply_method(resumed, method, seed=0, saved=tmp_path).parameters) == list(trained.parameters)
    load_values(tmp_path, resumed)
    assert torch.equal(logits(resumed), logits(model))


def test_eva_says_what_it_needs(drawn: Drawn) -> None:
    with pytest.raises(UserError, match="directions of them are asked for"):
        apply_method(build("llama"), LoRA(rank=20, init="eva"), seed=0, drawn=[drawn])
    with pytest.raises(UserError, match="supervised tokens at once"):
        apply_method(build("llama"), LoRA(rank=8, init="eva"), seed=0, drawn=[])
