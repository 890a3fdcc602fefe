"""A reference that follows the policy: it moves when it should, as far as it should, and a resumed run has the same one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import luthier
from luthier.engine.reference import Reference
from luthier.errors import Stopped, UserError
from luthier.models.policy import Policy
from luthier.objectives import score
from luthier.recipe.schema import Recipe
from tests.e2e.interrupted import StopAt, steps
from tests.e2e.test_preferences import space_of
from tests.families import build
from tests.preferences import drawn_of, pairs
from tests.workspace import weights_of


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_losses_begin_anew_where_it_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.chdir(tmp_path)
    space = space_of(tmp_path, method, stage={"type": "dpo", "reference": {"update": 3}}, train={"max_steps": 8, "batch_size": 4})
    run = luthier.train(space.recipe, progress=False)
    records = steps(run)
    for step, record in enumerate(records):
        if step % 3 == 0:
            assert record["loss"] == pytest.approx(math.log(2), abs=1e-6)
            assert record["margin"] == pytest.approx(0, abs=1e-6)
        else:
            assert abs(record["margin"]) > 1e-3
    with pytest.raises(Stopped):
        luthier.train(space.recipe, name="broken", callbacks=(StopAt(4),), progress=False)
    resumed = luthier.resume("broken", progress=False)
    assert [record["loss"] for record in steps(resumed)] == [record["loss"] for record in records]
    expected, found = weights_of(run.path / "final"), weights_of(resumed.path / "final")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_it_moves_a_part_of_the_way() -> None:
    stage = {"type": "dpo", "reference": {"update": 2, "mix": 0.25}}
    recipe = Recipe.model_validate({"model": "tiny", "data": {"train": ["rows.json"]}, "stage": stage, "method": "full"})
    policy, expected = Policy(build("llama").requires_grad_(True)), build("llama")
    reference = Reference(policy, recipe)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for mine, theirs in zip(policy.model.parameters(), expected.parameters(), strict=True):
            step = torch.randn(mine.shape, generator=generator) * 0.02
            mine.add_(step)
            theirs.add_(step, alpha=0.25)
    batch = drawn_of(pairs(), paired=True).batch(range(10))  # type: ignore[arg-type]
    first = score(Policy(build("llama")), batch, packing=True).logprob
    reference.follow(1)
    torch.testing.assert_close(reference.logprobs(batch, packing=True), first)
    reference.follow(2)
    moved = score(Policy(expected), batch, packing=True).logprob.detach()
    torch.testing.assert_close(reference.logprobs(batch, packing=True), moved, atol=1e-4, rtol=0)
    assert not torch.allclose(moved, first, atol=1e-2)


def test_factors_of_an_adapter_do_not_mix(tmp_path: Path) -> None:
    stage = {"type": "dpo", "reference": {"update": 2, "mix": 0.5}}
    with pytest.raises(UserError, match="trained whole"):
        luthier.train(space_of(tmp_path, stage=stage).recipe, progress=False)
