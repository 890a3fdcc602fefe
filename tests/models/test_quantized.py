"""Adapters over a base in few bits: the same formulas over the dequantised weights, for PEFT too, and a dense model after merging."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import peft
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.lora import adapted_layers
from luthier.models.adapters.merge import merge
from luthier.models.linear import dense_weight, is_quantised, quantised_layers, stored_bytes
from luthier.models.loading import load_model
from luthier.models.methods import apply_method
from luthier.models.policy import Policy, save_model
from luthier.recipe.schema import Freeze, Full, LoRA, Method, Model, Quantization
from tests.families import save
from tests.method_table import TABLE
from tests.models.batches import ragged
from tests.models.quantised import KINDS, TOKENS, load, logits, need, plain, written_out
from tests.stores import build_store, drawn_whole

CONTENT = TABLE["variants"]
VARIANTS: dict[str, Method] = {row["name"]: TypeAdapter(Method).validate_python(row["method"]) for row in CONTENT["methods"]}
COMMON = ("fp32", "nf4", "int8", "hqq", "torchao int4")
QUICK = [(kind, "lora") for kind in COMMON] + [("nf4", variant) for variant in ("rsLoRA", "DoRA", "EVA", "LoftQ", "adalora")]
CELLS = [(kind, variant) for kind in CONTENT["bases"] for variant in VARIANTS]
CELLS += [(kind, "lora") for kind in KINDS if (kind, "lora") not in CELLS]
WRITTEN_OUT = ("adalora", "hqq")
"""A cell that works here, but not in PEFT, whose AdaLoRA knows no layers of HQQ."""
QUANTISED = [pytest.param(kind, marks=[] if kind in COMMON else pytest.mark.slow) for kind in KINDS if kind != "fp32"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("base"))


def refusal(kind: str, variant: str) -> str | None:
    """A part of the message of a cell of the docs' table that cannot work."""
    return next((row["error"] for row in CONTENT["cannot"] if variant in row["methods"] and kind in row["bases"]), None)


def loss_of(model: PreTrainedModel) -> Tensor:
    scores = model(input_ids=TOKENS, use_cache=False).logits
    return nn.functional.cross_entropy(scores[0, :-1], TOKENS[0, 1:])


def three_steps(model: PreTrainedModel, trained: dict[str, nn.Parameter]) -> list[float]:
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return [*losses, loss_of(model).item()]


@pytest.mark.parametrize(
    ("kind", "variant"), [pytest.param(*cell, marks=[] if cell in QUICK else pytest.mark.slow) for cell in CELLS]
)
def test_three_steps_learn_and_plain_peft_computes_the_same(kind: str, variant: str, base: Path, tmp_path: Path) -> None:
    model, drawn = load(base, kind).train(), [drawn_whole(build_store(tmp_path / "store", range(60, 84)))]
    if (told := refusal(kind, variant)) is not None:
        with pytest.raises(UserError, match=told):
            apply_method(model, VARIANTS[variant], seed=0, drawn=drawn)
        return
    trained = apply_method(model, VARIANTS[variant], seed=0, drawn=drawn)
    losses = three_steps(model, trained.parameters)
    assert all(after < before for before, after in pairwise(losses)), losses
    policy = Policy(model, trained)
    assert policy.isolation.ok, policy.isolation.reason
    policy.save(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same = written_out(base, kind) if (variant, kind) == WRITTEN_OUT else plain(base, kind)
        theirs = peft.PeftModel.from_pretrained(same, str(tmp_path / "adapter")).train()
    assert (logits(model.train()) - logits(theirs)).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_base_trains_in_passes_and_merges(kind: str, base: Path, tmp_path: Path) -> None:
    model = load(base, kind)
    before = logits(model)
    trained = apply_method(model, LoRA(rank=2, dropout=0.1), seed=0)
    policy = Policy(model, trained)
    layers = adapted_layers(model)
    assert len(layers) == 14
    assert all(is_quantised(layer.base_layer) for layer in layers.values())
    assert trained.total == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(base).parameters()) + trained.count
    assert torch.allclose(logits(model), before, atol=1e-4)
    for layer in layers.values():
        nn.init.normal_(layer.lora_B, std=0.05)
    policy.hidden(ragged([9, 20]), packing=True).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters.values())
    before = logits(model)
    save_model(merge(model), tmp_path)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path)
    bound = 0.03 if kind == "int8" else 1e-4  # LLM.int8 quantises its inputs too
    assert torch.linalg.norm(logits(dense) - before) <= bound * torch.linalg.norm(before)


@pytest.mark.parametrize("family", ["gpt2", "falcon", "mixtral"])
@pytest.mark.parametrize("kind", ["nf4", "hqq", "torchao int8"])
def test_other_kinds_of_linear_layers(kind: str, family: str, tmp_path: Path) -> None:
    model = load(save(family, tmp_path), kind)
    original = AutoModelForCausalLM.from_pretrained(tmp_path)
    layers = quantised_layers(model)
    assert len(layers) == {"gpt2": 8, "falcon": 8, "mixtral": 8}[family]
    for name, layer in layers.items():
        exact = dense_weight(original.get_submodule(name))
        assert torch.linalg.norm(dense_weight(layer).float() - exact) < 0.15 * torch.linalg.norm(exact), name
    trained = apply_method(model, LoRA(rank=2), seed=0)
    losses = three_steps(model, trained.parameters)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("kind", "share", "error"),
    [
        ("nf4", 0.32, 0.15),
        ("nf4 without double", 0.32, 0.15),
        ("fp4", 0.32, 0.2),
        ("int8", 0.51, 0.02),
        ("hqq", 0.32, 0.15),
        ("hqq 8", 0.57, 0.02),
        ("torchao int8", 0.51, 0.02),
        ("torchao int4", 0.32, 0.2),
        ("torchao fp8", 0.51, 0.05),
    ],
)
def test_memory_and_error_of_a_layer(kind: str, share: float, error: float, tmp_path: Path) -> None:
    folder = save("llama", tmp_path, hidden_size=256, intermediate_size=512)
    model, original = load(folder, kind), AutoModelForCausalLM.from_pretrained(folder)
    layers = quantised_layers(model)
    dense = sum(2 * original.get_submodule(name).weight.numel() for name in layers)
    half = 2 if kind.startswith("hqq") else 1  # scales of HQQ and torchao are in the dtype of training, here float32
    assert sum(map(stored_bytes, layers.values())) <= share * dense * (1 + (half - 1) * 0.1)
    for name, layer in layers.items():
        exact = original.get_submodule(name).weight
        assert torch.linalg.norm(dense_weight(layer).float() - exact) < error * torch.linalg.norm(exact), name


def test_nothing_of_the_weights_is_kept_for_the_backward_pass(base: Path) -> None:
    for kind in ("nf4", "hqq", "torchao int8"):
        model = load(base, kind)
        apply_method(model, LoRA(rank=2, target=("q_proj", "v_proj")), seed=0)
        packed = {tensor.data_ptr() for layer in quantised_layers(model).values() for tensor in layer.parameters()}
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, kept=kept: kept.append(tensor) or tensor, lambda t: t):
            loss_of(model)
        large = {(64, 64), (32, 64), (128, 64), (64, 128), (64, 32)}
        weights = [t for t in kept if tuple(t.shape) in large and t.data_ptr() not in packed and t.dtype == torch.float32]
        assert not weights, f"{kind} keeps {[tuple(t.shape) for t in weights]}"


def test_four_bits_compute_the_same_with_and_without_gradients(base: Path) -> None:
    model = load(base, "nf4")
    assert torch.allclose(model(input_ids=TOKENS).logits, logits(model), atol=1e-5)


def test_skipped_layers_and_the_head_stay(base: Path) -> None:
    for kind in ("nf4", "hqq"):
        model = load(base, kind, skip=("down_proj", "layers.0.self_attn.q_proj"))
        dense = {name for name, module in model.named_modules() if type(module) is nn.Linear}
        assert dense == {"lm_head", "model.layers.0.self_attn.q_proj", *(f"model.layers.{n}.mlp.down_proj" for n in (0, 1))}
    with pytest.raises(UserError, match="no linear layer is called `dwn_proj`"):
        load(base, "nf4", skip=("dwn_proj",))


def test_eight_bits_are_quiet(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    logits(load(base, "int8"))
    assert not caplog.records


def test_what_four_bits_cost_is_said(base: Path) -> None:
    model = load(base, "nf4")
    policy = Policy(model, apply_method(model, LoRA(rank=2), seed=0))
    assert "base in 4 bits (bitsandbytes nf4 with double quantisation): " in policy.describe()
    assert "% of its weights, at 0." in policy.describe()


def test_sizes_that_four_bits_cannot_hold_are_refused(tmp_path: Path) -> None:
    save("llama", tmp_path, intermediate_size=100)
    with pytest.raises(UserError, match=r"divisible by 64, and `model.layers.0.mlp.down_proj` has 100") as caught:
        load(tmp_path, "nf4")
    assert "skip: [down_proj]" in str(caught.value)
    assert len(quantised_layers(load(tmp_path, "nf4", skip=("down_proj",)))) == 12


@pytest.mark.parametrize("method", [Full(), Freeze(layers=1)])
def test_what_is_in_few_bits_is_not_trained_itself(method: Full | Freeze, base: Path) -> None:
    with pytest.raises(UserError, match="in few bits cannot be trained"):
        apply_method(load(base, "nf4"), method, seed=0)


def test_a_folder_that_bitsandbytes_has_quantised_is_a_base(base: Path, tmp_path: Path) -> None:
    need("nf4")
    plain(base, "nf4").save_pretrained(tmp_path)
    model = load(tmp_path, "fp32")
    assert len(quantised_layers(model)) == 14
    assert torch.allclose(logits(model), logits(load(base, "nf4")), atol=1e-5)
    with pytest.raises(UserError, match="quantised with bitsandbytes already"):
        load(tmp_path, "nf4")


def test_experts_stay_as_they_are_and_it_is_said(tmp_path: Path) -> None:
    """No library here rounds fused parameters; adapters stand beside both kinds of weights."""
    folder = save("mixtral", tmp_path)
    section = Model(path=str(folder), quantization=Quantization(bits=4))
    model = load_model(section, dtype=torch.float32, device=torch.device("cpu"))
    policy = Policy(model, apply_method(model, LoRA(rank=2), seed=0))
    assert "its experts, 74% of them, stay as they are" in policy.describe()
    policy.hidden(ragged((9, 5)), packing=True).square().sum().backward()
    assert all(value.grad is not None for value in policy.trainable.parameters.values())
