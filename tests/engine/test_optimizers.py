"""Every optimizer takes its library's own steps, lowers the loss, and resumes bit for bit, with masters and without."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from luthier.engine.groups import Roles
from luthier.engine.optim import Optimizer
from luthier.engine.optimizers.badam import turn
from luthier.engine.optimizers.registry import PACKAGES, kind_of
from luthier.errors import UserError
from luthier.recipe.schema import Train
from luthier.recipe.sections.optimizer import BAdam
from tests.families import build

RATE, DECAY, HEADS = 0.01, 0.1, 4
ROLES = Roles(embeddings="embed_tokens", head="lm_head", layers=("layers.0", "layers.1"), head_size=64 * 64 // HEADS)
SHAPES = {
    "embed_tokens.weight": (80, 64),
    "layers.0.q_proj.weight": (64, 64),
    "layers.0.mlp.down_proj.weight": (64, 96),
    "layers.0.norm.weight": (64,),
    "layers.1.q_proj.weight": (64, 64),
    "layers.1.mlp.up_proj.weight": (96, 64),
    "layers.1.mlp.up_proj.bias": (96,),
    "lm_head.weight": (80, 64),
}
PROJECTED = [name for name, shape in SHAPES.items() if name.startswith("layers") and len(shape) == 2]
EVERY: dict[str, Any] = {
    "adamw": "adamw",
    "adamw8": {"bits": 8},
    "paged": {"paged": True},
    "offload": {"offload": True},
    "sgd": {"type": "sgd", "nesterov": True},
    "plain sgd": {"type": "sgd", "momentum": 0},
    "adafactor": {"type": "adafactor", "beta1": 0.9, "scale": True},
    "lion": "lion",
    "lion8": {"type": "lion", "bits": 8},
    "adam_mini": "adam_mini",
    "muon": "muon",
    "galore": {"type": "galore", "rank": 4, "update_every": 2},
    "apollo": {"type": "apollo", "rank": 4, "update_every": 2},
    "apollo_mini": {"type": "apollo", "rank": 1, "update_every": 2, "scale_by": "tensor", "scale": 128, "projection": "svd"},
    "badam": {"type": "badam", "switch_every": 2},
    "schedule_free": "schedule_free",
}
"""Optimizers as a recipe writes them."""


def train(name: str, **fields: Any) -> Train:
    """A `train` section with one of the optimizers; skips where its library is not installed."""
    section = Train.model_validate({"optimizer": EVERY[name], "weight_decay": DECAY, "max_grad_norm": 0, **fields})
    try:
        kind_of(section.optimizer)
    except UserError as error:
        pytest.skip(str(error))
    return section


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: Parameter((torch.randn(shape, generator=generator) * 0.1).to(dtype)) for name, shape in SHAPES.items()}


def gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def advance(optimizer: Optimizer, values: dict[str, Parameter], first: int, last: int) -> None:
    """Steps with given gradients, which come as those of a backward pass do."""
    for step in range(first, last):
        optimizer.begin(step)
        given = gradients(step)
        total = sum((value.float() * given[name]).sum() for name, value in values.items() if value.requires_grad)
        assert isinstance(total, Tensor)
        total.backward()
        assert optimizer.step(torch.zeros(()), RATE).bad.item() == 0


def split(values: dict[str, Parameter]) -> list[dict[str, Any]]:
    """Groups as a person would write them: matrices decay, vectors do not."""
    return [
        {"params": [value for value in values.values() if value.ndim == 2], "weight_decay": DECAY},
        {"params": [value for value in values.values() if value.ndim == 1], "weight_decay": 0.0},
    ]


def with_projection(values: dict[str, Parameter], **settings: Any) -> list[dict[str, Any]]:
    """Groups for GaLore and APOLLO: the matrices of the layers projected."""
    matrices = [values[name] for name in PROJECTED]
    others = [values[name] for name in ("embed_tokens.weight", "lm_head.weight")]
    return [
        {"params": matrices, "weight_decay": DECAY, "update_proj_gap": 2, "proj_type": "std", **settings},
        {"params": others, "weight_decay": DECAY},
        {"params": [value for value in values.values() if value.ndim == 1], "weight_decay": 0.0},
    ]


def adamw(values: dict[str, Parameter]) -> list[Any]:
    return [torch.optim.AdamW(split(values), lr=RATE)]


def adamw8(values: dict[str, Parameter]) -> list[Any]:
    import bitsandbytes

    return [bitsandbytes.optim.AdamW8bit(split(values), lr=RATE)]


def paged(values: dict[str, Parameter]) -> list[Any]:
    import bitsandbytes

    return [bitsandbytes.optim.PagedAdamW(split(values), lr=RATE)]


def sgd(values: dict[str, Parameter], momentum: float = 0.9) -> list[Any]:
    return [torch.optim.SGD(split(values), lr=RATE, momentum=momentum, nesterov=momentum > 0)]


def adafactor(values: dict[str, Parameter]) -> list[Any]:
    from transformers.optimization import Adafactor

    return [Adafactor(split(values), lr=RATE, beta1=0.9, scale_parameter=True, relative_step=False)]


def lion(values: dict[str, Parameter]) -> list[Any]:
    import bitsandbytes

    return [bitsandbytes.optim.Lion(split(values), lr=RATE)]


def lion8(values: dict[str, Parameter]) -> list[Any]:
    import bitsandbytes

    return [bitsandbytes.optim.Lion8bit(split(values), lr=RATE)]


def adam_mini(values: dict[str, Parameter]) -> list[Any]:
    from adam_mini import Adam_mini

    made = Adam_mini(values.items(), lr=RATE, weight_decay=DECAY, verbose=False, dim=64, n_heads=HEADS)
    return [made]


def muon(values: dict[str, Parameter]) -> list[Any]:
    matrices = [values[name] for name in PROJECTED]
    groups = split({name: value for name, value in values.items() if name not in PROJECTED})
    return [
        torch.optim.Muon(matrices, lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=RATE),
    ]


def galore(values: dict[str, Parameter]) -> list[Any]:
    from galore_torch import GaLoreAdamW

    return [GaLoreAdamW(with_projection(values, rank=4, scale=0.25), lr=RATE)]


def apollo(values: dict[str, Parameter]) -> list[Any]:
    from apollo_torch import APOLLOAdamW

    return [APOLLOAdamW(with_projection(values, rank=4, scale=1.0, scale_type="channel", proj="random"), lr=RATE)]


def apollo_mini(values: dict[str, Parameter]) -> list[Any]:
    from apollo_torch import APOLLOAdamW

    return [APOLLOAdamW(with_projection(values, rank=1, scale=128, scale_type="tensor", proj="svd"), lr=RATE)]


def schedule_free(values: dict[str, Parameter]) -> list[Any]:
    from schedulefree import AdamWScheduleFree

    made = AdamWScheduleFree(split(values), lr=RATE)
    made.train()
    return [made]


LIBRARIES: dict[str, Callable[[dict[str, Parameter]], list[Any]]] = {
    "adamw": adamw,
    "adamw8": adamw8,
    "paged": paged,
    "offload": adamw,
    "sgd": sgd,
    "plain sgd": lambda values: sgd(values, 0.0),
    "adafactor": adafactor,
    "lion": lion,
    "lion8": lion8,
    "adam_mini": adam_mini,
    "muon": muon,
    "galore": galore,
    "apollo": apollo,
    "apollo_mini": apollo_mini,
    "schedule_free": schedule_free,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIBRARIES)
def test_three_steps_are_the_librarys_own(name: str) -> None:
    ours, theirs = parameters(), parameters()
    advance(Optimizer(ours, train(name), roles=ROLES), ours, 0, 3)
    libraries = LIBRARIES[name](theirs)
    for step in range(3):
        for key, gradient in gradients(step).items():
            theirs[key].grad = gradient.clone()
        for library in libraries:
            library.step()
    for key, value in ours.items():
        assert not torch.equal(value, parameters()[key]), key
        torch.testing.assert_close(value, theirs[key], rtol=1e-6, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", EVERY)
def test_lowers_the_loss(name: str) -> None:
    model = build("llama", seed=1).train().requires_grad_(True)
    tokens = torch.arange(40)[None] * 7 % 256
    values = dict(model.named_parameters())
    section = train(name, max_grad_norm=1.0)
    optimizer = Optimizer(values, section, roles=Roles.of(model))
    rate = {"lion": 1e-3, "lion8": 1e-3, "sgd": 0.05, "plain sgd": 0.3, "apollo_mini": 2e-3}.get(name, 5e-3)

    def loss() -> Tensor:
        return model(input_ids=tokens, labels=tokens, use_cache=False).loss

    before = loss().item()
    for step in range(6):
        optimizer.begin(step)
        now = loss()
        now.backward()
        optimizer.step(now.detach(), rate)
    with optimizer.averaged():
        assert loss().item() < before - 0.05


PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "pure_bf16": {"precision": "pure_bf16"},
    "kahan": {"precision": "pure_bf16", "rounding": "kahan"},
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", EVERY)
def test_resumes_bit_for_bit(name: str, precision: str, tmp_path: Path) -> None:
    pure = precision in ("pure_bf16", "kahan")
    if pure and name in ("offload", "badam", "schedule_free"):
        pytest.skip("refused by the recipe")
    section, dtype = train(name, **PRECISIONS[precision]), torch.float32 if precision == "fp32" else torch.bfloat16

    def make(values: dict[str, Parameter]) -> Optimizer:
        return Optimizer(values, section, pure=pure, roles=ROLES)

    straight = parameters(dtype)
    reference = make(straight)
    advance(reference, straight, 0, 3)
    with reference.averaged():
        weights = {key: value.detach().to(straight[key]).clone() for key, value in reference.weights().items()}
        weights = {key: weights.get(key, value.detach().clone()) for key, value in straight.items()}
        state = {key: value.contiguous() for key, value in reference.state().items()}
        save_file(state, tmp_path / "state.safetensors")
    advance(reference, straight, 3, 7)

    resumed = {key: Parameter(value) for key, value in weights.items()}
    second = make(resumed)
    second.load(load_file(tmp_path / "state.safetensors"))
    advance(second, resumed, 3, 7)
    for key in straight:
        assert torch.equal(straight[key], resumed[key]), key
    for key, value in reference.state().items():
        assert torch.equal(value, second.state()[key]), key


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("precision", ["fp32", "pure_bf16"])
def test_a_bad_step_changes_nothing(name: str, precision: str) -> None:
    pure = precision == "pure_bf16"
    if pure and name in ("offload", "badam", "schedule_free"):
        pytest.skip("refused by the recipe")
    values = parameters(torch.bfloat16 if pure else torch.float32)
    optimizer = Optimizer(values, train(name, **PRECISIONS[precision]), pure=pure, roles=ROLES)
    advance(optimizer, values, 0, 1)
    before = {key: value.detach().clone() for key, value in values.items()}
    state = {key: value.clone() for key, value in optimizer.state().items() if key != "at"}
    optimizer.begin(1)
    sum((value.float() * float("nan")).sum() for value in values.values() if value.requires_grad).backward()  # type: ignore[union-attr]
    assert optimizer.step(torch.zeros(()), RATE).bad.item() == 1
    assert all(torch.equal(value, before[key]) for key, value in values.items())
    assert all(torch.equal(value, state[key]) for key, value in optimizer.state().items() if key != "at")


@pytest.mark.filterwarnings("error")
def test_paged_moments_are_plain_ones_on_a_cpu() -> None:
    values, other = parameters(), parameters()
    advance(Optimizer(values, train("paged"), roles=ROLES), values, 0, 2)
    advance(Optimizer(other, train("adamw"), roles=ROLES), other, 0, 2)
    for name, value in values.items():
        assert torch.allclose(value, other[name], atol=1e-6), name


def test_badam_trains_one_layer_at_a_time_as_the_package_does() -> None:
    """While a layer has its turn, it takes the steps of an AdamW that knows it alone and begins anew (Luo et al. 2024, algorithm 1)."""
    section = train("badam", optimizer={"type": "badam", "switch_every": 2, "order": "ascending"})
    ours, theirs = parameters(), parameters()
    optimizer = Optimizer(ours, section, roles=ROLES)
    for turn_of in range(3):
        layer = ROLES.layers[turn_of % 2]
        chosen = {key: value for key, value in theirs.items() if key.startswith(f"{layer}.")}
        (reference,) = adamw(chosen)
        for step in (2 * turn_of, 2 * turn_of + 1):
            advance(optimizer, ours, step, step + 1)
            assert {key for key, value in ours.items() if value.requires_grad} == set(chosen)
            assert set(optimizer.weights()) == set(chosen)
            for key, value in chosen.items():
                value.grad = gradients(step)[key]
            reference.step()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_badam_gives_every_layer_its_turn(order: str) -> None:
    settings = BAdam(switch_every=3, order=order)
    turns = [turn(settings, 5, seed=1, step=step) for step in range(30)]
    assert [turns[index] for index in range(0, 30, 3)] == [turns[index + 2] for index in range(0, 30, 3)]
    assert sorted(turns[0:15:3]) == sorted(turns[15:30:3]) == [0, 1, 2, 3, 4]
    assert (turns[0:15:3] == turns[15:30:3]) == (order != "random")


def test_schedule_free_is_measured_and_saved_at_the_average() -> None:
    section = train("schedule_free")
    values = parameters()
    optimizer = Optimizer(values, section, roles=ROLES)
    advance(optimizer, values, 0, 4)
    before = {key: value.detach().clone() for key, value in values.items()}
    (library,) = optimizer.rules[0].optimizers
    with optimizer.averaged():
        inside = {key: value.detach().clone() for key, value in optimizer.weights().items()}
        assert all(torch.equal(optimizer.state()[f"master.{key}"], before[key]) for key in values)
    assert all(torch.equal(value, before[key]) for key, value in values.items())
    for key, value in values.items():
        z = library.state[value]["z"]
        torch.testing.assert_close(inside[key], value + (z - value) * (1 - 1 / 0.9), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_small_updates_survive_without_masters(rounding: str) -> None:
    values = {"w": Parameter(torch.ones(64, 64, dtype=torch.bfloat16))}
    optimizer = Optimizer(values, Train(precision="pure_bf16", rounding=rounding), pure=True)
    for step in range(200):
        optimizer.begin(step)
        values["w"].float().sum().backward()
        optimizer.step(torch.zeros(()), 1e-4)
    assert values["w"].float().mean().item() == pytest.approx(1 - 200 * 1e-4, abs=2e-3)
    assert optimizer.weights()["w"].float().mean().item() == pytest.approx(1 - 200 * 1e-4, abs=5e-4)
    assert all(value.numel() == 0 for value in optimizer.masters.values.values()), "masters are gone after the step"


def test_groups_have_rates_and_decay_of_their_own() -> None:
    section = train(
        "plain sgd",
        learning_rate=RATE,
        embedding_learning_rate=RATE / 10,
        head_learning_rate=RATE * 2,
        groups=[
            {"match": r"layers\.1\.mlp\.up_proj", "learning_rate": RATE / 2, "weight_decay": 0.0},
            {"match": "norm", "weight_decay": 0.5},
        ],
    )
    values, start = parameters(), parameters()
    advance(Optimizer(values, section, roles=ROLES), values, 0, 1)
    expected = {
        "embed_tokens.weight": (0.1, DECAY),
        "lm_head.weight": (2.0, DECAY),
        "layers.1.mlp.up_proj.weight": (0.5, 0.0),
        "layers.1.mlp.up_proj.bias": (0.5, 0.0),
        "layers.0.norm.weight": (1.0, 0.5),
    }
    for key, gradient in gradients(0).items():
        ratio, decay = expected.get(key, (1.0, DECAY))
        wanted = start[key] - RATE * ratio * (gradient + decay * start[key])
        torch.testing.assert_close(values[key].detach(), wanted.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"groups": [{"match": "lora_B", "learning_rate": 1.0}]}, "fits none of the 8 trained parameters"),
        ({"head_learning_rate": 1e-5}, "nothing of it is trained"),
    ],
)
def test_settings_that_fit_nothing_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Optimizer(parameters(), Train.model_validate(fields))


@pytest.mark.parametrize("name", ["galore", "apollo", "badam"])
def test_what_is_for_whole_weights_is_not_for_adapters(name: str) -> None:
    with pytest.raises(UserError, match="trained whole"):
        Optimizer(parameters(), train(name), roles=ROLES, adapters=True)


@pytest.mark.parametrize("name", [*PACKAGES, "adamw8"])
def test_a_missing_library_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    section = Train.model_validate({"optimizer": EVERY[name]})
    with pytest.raises(UserError, match=r"needs the package .*luthier\[optimizers\]"):
        kind_of(section.optimizer)
