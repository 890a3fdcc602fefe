"""The update: schedules, masters, clipping, and steps that must change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from luthier.engine.optim import SCALE_START, Optimizer, learning_rate
from luthier.recipe.schema import Train


def rates(total: int = 100, **fields: object) -> list[float]:
    train = Train.model_validate({"learning_rate": 1.0, **fields})
    return [learning_rate(train, step, total) for step in range(total)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_schedules_warm_up_and_never_pass_the_peak(schedule: str) -> None:
    course = rates(schedule=schedule, warmup=10)
    assert course[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert max(course) == pytest.approx(1.0)
    assert all(rate > 0 for rate in course)
    assert course[10:] == sorted(course[10:], reverse=True)


def test_schedule_shapes() -> None:
    assert rates(schedule="linear", warmup=0)[50] == pytest.approx(0.5)
    assert rates(schedule="cosine", warmup=0)[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert rates(schedule="wsd", warmup=0, decay=0.2)[79:82] == pytest.approx([1.0, 1.0, 0.95])
    assert min(rates(schedule="cosine", min_learning_rate=0.1)) >= 0.1
    assert rates(warmup=0.1)[9] < 1.0 <= rates(warmup=0.1)[10]


def parameters(dtype: torch.dtype) -> dict[str, Parameter]:
    torch.manual_seed(0)
    return {"matrix": Parameter(torch.randn(4, 3).to(dtype)), "bias": Parameter(torch.randn(4).to(dtype))}


def loss_of(values: dict[str, Parameter], x: torch.Tensor) -> torch.Tensor:
    return (values["matrix"].float() @ x + values["bias"].float()).square().sum()


def test_fp32_is_torch_adamw() -> None:
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    train = Train(weight_decay=0.1, max_grad_norm=0.5)
    optimizer = Optimizer(ours, train)
    reference = torch.optim.AdamW(
        [{"params": [theirs["matrix"]], "weight_decay": 0.1}, {"params": [theirs["bias"]], "weight_decay": 0.0}], lr=0.01
    )
    for step in range(5):
        x = torch.randn(3, generator=torch.Generator().manual_seed(step))
        optimizer.begin(step)
        loss = loss_of(ours, x)
        loss.backward()
        norm = optimizer.step(loss.detach(), 0.01).grad_norm
        reference.zero_grad()
        loss_of(theirs, x).backward()
        expected = torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        reference.step()
        torch.testing.assert_close(norm, expected)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_updates_are_not_lost_in_16_bits(dtype: torch.dtype) -> None:
    values = {"w": Parameter(torch.ones(8, 8, dtype=dtype))}
    optimizer = Optimizer(values, Train())
    for index in range(200):
        optimizer.begin(index)
        (values["w"].float().sum()).backward()
        optimizer.step(torch.zeros(()), 1e-4)
    assert optimizer.masters.values["w"].mean().item() == pytest.approx(1 - 200 * 1e-4, abs=2e-4)
    assert values["w"].float().mean().item() == pytest.approx(0.98, abs=5e-3)


def test_passes_accumulate_in_float32() -> None:
    values = {"w": Parameter(torch.zeros(1, 1, dtype=torch.bfloat16))}
    optimizer = Optimizer(values, Train())
    optimizer.begin(0)
    for _ in range(300):
        (values["w"] * 1.0).sum().backward()
    assert optimizer.masters.values["w"].grad is not None
    assert optimizer.masters.values["w"].grad.item() == 300.0, "bf16 would stop at 256"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_step_changes_nothing(dtype: torch.dtype, where: str) -> None:
    values = parameters(dtype)
    optimizer = Optimizer(values, Train(weight_decay=0.1), half=dtype == torch.float16)

    def step(factor: float) -> float:
        optimizer.begin(0)
        loss = loss_of(values, torch.ones(3)) * (factor if where == "gradient" else 1.0)
        (loss * optimizer.scale if optimizer.half else loss).backward()
        said = loss.detach() * (factor if where == "loss" else 1.0)
        return optimizer.step(said, 0.01).bad.item()

    assert step(1.0) == 0.0
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    weights = {name: value.detach().clone() for name, value in values.items()}
    assert step(float("nan")) == 1.0
    for name, value in values.items():
        assert torch.equal(value, weights[name])
    for name, tensor in optimizer.state().items():
        if name not in ("scale", "clean_steps"):
            assert torch.equal(tensor, before[name]), name
    assert optimizer.scale.item() == (SCALE_START / 2 if dtype == torch.float16 else 1.0)
    assert step(1.0) == 0.0
    assert not torch.equal(values["matrix"], weights["matrix"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_round_trip_is_bitwise(dtype: torch.dtype) -> None:
    def run(optimizer: Optimizer, values: dict[str, Parameter], first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.begin(step)
            loss = loss_of(values, torch.randn(3, generator=torch.Generator().manual_seed(step)))
            loss.backward()
            optimizer.step(loss.detach(), 0.01)

    straight = parameters(dtype)
    run(Optimizer(straight, Train()), straight, 0, 6)
    broken = parameters(dtype)
    first = Optimizer(broken, Train())
    run(first, broken, 0, 3)
    taken = {name: tensor.clone() for name, tensor in first.state().items()}
    resumed = {name: Parameter(value.detach().clone()) for name, value in broken.items()}
    second = Optimizer(resumed, Train())
    second.load(taken)
    run(second, resumed, 3, 6)
    for name in straight:
        assert torch.equal(straight[name], resumed[name])
