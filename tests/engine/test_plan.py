"""The numbers of a run: how large a step is, how large a pass, when things happen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.engine.parallel import start_world
from luthier.engine.plan import Plan, batch_of, choose_precision, make_plan, pass_tokens
from luthier.errors import UserError
from luthier.recipe.schema import Recipe, Train

CPU = torch.device("cpu")


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"model": "tiny", "data": {"train": "rows.json"}, **sections})


def plan(found: Recipe, steps_per_epoch: int = 12, *, validated: bool = True) -> Plan:
    return make_plan(
        found,
        steps_per_epoch=steps_per_epoch,
        batch=(8, None),
        longest=100,
        packing=True,
        validated=validated,
        precision="fp32",
        world=start_world(),
    )


@pytest.mark.parametrize(
    ("fields", "stage", "ranks", "expected"),
    [
        ({}, "sft", 1, (8, None)),
        ({}, "pt", 1, (None, 16 * 512)),
        ({"batch_size": 3}, "pt", 1, (3, None)),
        ({"batch_tokens": 999}, "sft", 4, (None, 999)),
        ({"per_device_batch_size": 2, "gradient_accumulation_steps": 3}, "sft", 4, (24, None)),
        ({"per_device_batch_size": 2, "batch_size": 8}, "sft", 4, (8, None)),
    ],
)
def test_every_way_to_say_a_batch(
    fields: dict[str, int], stage: str, ranks: int, expected: tuple[int | None, int | None]
) -> None:
    assert batch_of(Train.model_validate(fields), stage, 512, ranks) == expected


def test_contradictions_are_refused() -> None:
    with pytest.raises(UserError, match="2 × 3 × 2 = 12"):
        batch_of(Train(batch_size=8, per_device_batch_size=2, gradient_accumulation_steps=3), "sft", 512, 2)
    with pytest.raises(UserError, match="longest segment of 600 tokens"):
        pass_tokens(Train(micro_batch_tokens=512), 600, CPU, "fp32")
    assert pass_tokens(Train(), 5000, CPU, "fp32") == 5000


def test_steps_and_occasions() -> None:
    assert plan(recipe(train={"epochs": 3})).total_steps == 36
    assert plan(recipe(train={"epochs": 0.5})).total_steps == 6
    assert plan(recipe(train={"epochs": 0.01})).total_steps == 1
    assert plan(recipe(train={"epochs": 3, "max_steps": 5})).total_steps == 5
    once_an_epoch = plan(recipe())
    assert (once_an_epoch.evaluate_every, once_an_epoch.save_every, once_an_epoch.sample_every) == (12, 12, None)
    assert plan(recipe(), validated=False).evaluate_every is None
    assert plan(recipe(evaluate={"every": 4, "samples": {"prompts": ["hi"]}})).sample_every == 4


def test_precision_follows_the_machine_and_the_wish() -> None:
    assert choose_precision(recipe(), CPU) == "fp32"
    assert choose_precision(recipe(train={"precision": "bf16"}), CPU) == "bf16"
    assert choose_precision(recipe(model={"path": "tiny", "dtype": "float16"}), CPU) == "fp16"
    assert choose_precision(None, CPU) == "fp32"
