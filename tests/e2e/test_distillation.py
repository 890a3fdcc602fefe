"""Distillation, end to end: the student comes nearer to its teacher, resumes to the bit, and is refused a teacher of other tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import luthier
from luthier.errors import Stopped, UserError
from tests.e2e.interrupted import StopAt, steps
from tests.workspace import Workspace, small_model, weights_of


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A student of one shape and a teacher of another, with the same tokens."""
    monkeypatch.chdir(tmp_path)
    small_model(tmp_path / "teacher", "gpt2", seed=1)
    stage = {"type": "distill", "teacher": "teacher"}
    return Workspace.make(tmp_path, stage=stage, data={"validation": 4}, method={"type": "full"}, train={"epochs": 3})


@pytest.mark.parametrize("loss", ["forward", "jsd", pytest.param("reverse", marks=pytest.mark.slow)])
def test_the_student_comes_nearer_to_its_teacher(space: Workspace, loss: str) -> None:
    run = luthier.train(space.recipe, overrides=[f"stage.loss={loss}"], progress=False)
    first, *_, last = steps(run)
    assert last["divergence"] < 0.9 * first["divergence"]
    assert last["loss"] == pytest.approx(last["divergence"])
    assert [record for record in run.metrics() if "eval_divergence" in record]
    AutoModelForCausalLM.from_pretrained(run.path / "final")


def test_the_teacher_may_have_an_adapter_and_stays_as_it_is(space: Workspace) -> None:
    luthier.train(space.recipe, overrides=["stage=sft", "method=lora", "model.path=teacher"], name="expert", progress=False)
    before = weights_of(space.folder / "teacher")
    given = ["stage.teacher.adapter=runs/expert/final", "method=lora", "model.path=teacher"]
    run = luthier.train(space.recipe, overrides=given, name="pupil", progress=False)
    assert steps(run)[-1]["divergence"] < steps(run)[0]["divergence"]
    after = weights_of(space.folder / "teacher")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_teacher_of_other_tokens_is_refused(space: Workspace) -> None:
    teacher = space.folder / "teacher"
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:10]
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="another tokenizer"):
        luthier.train(space.recipe, progress=False)


def test_own_answers_are_learnt_from_and_resume_to_the_bit(space: Workspace) -> None:
    own = ["stage.on_policy=0.5", "stage.max_new_tokens=8", "stage.loss=reverse"]
    straight = luthier.train(space.recipe, overrides=own, progress=False)
    tokens = [record["tokens"] for record in steps(straight)]
    plain = luthier.train(space.recipe, overrides=[*own, "stage.on_policy=0"], name="plain", progress=False)
    differ = [ours != theirs["tokens"] for ours, theirs in zip(tokens, steps(plain), strict=True)]
    assert 0.2 < sum(differ) / len(differ) < 0.8
    evaluated = [record["eval_divergence"] for record in straight.metrics() if "eval_divergence" in record]
    assert evaluated[-1] < evaluated[0]
    with pytest.raises(Stopped):
        luthier.train(space.recipe, overrides=own, name="broken", callbacks=(StopAt(3),), progress=False)
    resumed = luthier.resume("broken", progress=False)
    expected, found = weights_of(straight.path / "final"), weights_of(resumed.path / "final")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
