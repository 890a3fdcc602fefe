"""Online DPO, end to end: pairs of the policy's own answers are learnt from, told, measured on held-out prompts, and resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.errors import Stopped, UserError
from luthier.runs.folder import RunFolder
from tests.e2e.interrupted import StopAt, steps
from tests.e2e.test_reinforcement import space_of, told
from tests.workspace import Workspace, weights_of

STAGES: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "twice": {"passes": 2, "mini_batches": 2, "loss": "hinge", "beta": 0.02},
    "sorted": {"loss": "aot", "mini_batches": 2},
    "several": {"loss": {"ipo": 0.5, "sppo_hard": 0.5}, "sft_weight": 0.1, "temperature": 0.8, "margin": 0.05},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def space(folder: Path, stage: dict[str, Any] | None = None, **sections: Any) -> Workspace:
    """Eight questions and a reward for vowels."""
    return space_of(folder, {"type": "online_dpo"} | (stage or {}), **sections)


def give(folder: Path, reward: str) -> None:
    """Another reward."""
    (folder / "reward.py").write_text(f"def vowels(answers):\n    return [{reward} for answer in answers]\n")


FAST = {"sigmoid": 1, "twice": 4}
"""Watchers hear of a step one step late: after step 4 the next rollout is half learnt."""


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in STAGES])
def test_it_runs_tells_and_resumes_to_the_bit(tmp_path: Path, name: str) -> None:
    recipe = space(tmp_path, STAGES[name], checkpoint={"every": 5}).recipe
    run = luthier.train(recipe, progress=False)
    records = steps(run)
    assert len(records) == 6
    expected = {"reward", "reward/vowels", "answer_tokens", "cut", "pairs", "gap", "accuracy", "margin", "kl", "entropy"}
    assert all(record.keys() >= expected for record in records)
    assert all(0 < record["pairs"] <= 1 and record["gap"] > 0 and record["grad_norm"] > 0 for record in records)
    assert records[0]["margin"] == 0
    assert records[0]["kl"] == 0
    assert records[-1]["kl"] > 0
    assert all(sample["rewards"].keys() == {"vowels", "total"} for sample in run.samples())
    with pytest.raises(Stopped):
        luthier.train(recipe, name="broken", callbacks=(StopAt(FAST.get(name, 2)),), progress=False)
    resumed = luthier.resume("broken", progress=False)
    kept = ("loss", "reward", "grad_norm", "margin", "pairs")
    assert told(resumed, *kept) == told(run, *kept)
    before, after = weights_of(run.path / "final"), weights_of(resumed.path / "final")
    assert all(torch.equal(before[name], after[name]) for name in before)


SLOW = [pytest.param(change, marks=pytest.mark.slow) for change in ("data.packing=false", "two processes")]


@pytest.mark.parametrize("change", ["stage.rows=5", *SLOW])
def test_execution_changes_nothing_but_rounding(tmp_path: Path, change: str) -> None:
    """The first rollout is the same answer for answer; after it, rounding may tip a token, so only that one is compared."""
    made = space(tmp_path, STAGES["twice"], train={"max_steps": 4, "micro_batch_tokens": 512})
    reference = luthier.train(made.recipe, progress=False)
    if change == "two processes":
        done = made.luthier("train", "recipe.yaml", "--name", "other", "--nproc", "2")
        assert done.returncode == 0, done.stderr
        other = luthier.Run(RunFolder(tmp_path / "runs/other"))
    else:
        other = luthier.train(made.recipe, overrides=[change, "train.micro_batch_tokens=64"], name="other", progress=False)
    names = ("reward", "loss", "pairs", "gap", "grad_norm", "margin", "kl", "entropy")
    for one, two in zip(told(other, *names), told(reference, *names), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-6)


def test_equals_are_no_pairs(tmp_path: Path) -> None:
    made = space(tmp_path, train={"max_steps": 2})
    give(tmp_path, "1.0")
    run = luthier.train(made.recipe, progress=False)
    assert all(record["pairs"] == record["gap"] == record["grad_norm"] == 0 for record in steps(run))
    assert all(record["equal_groups"] == 1 for record in steps(run))
    give(tmp_path, "None if 'please' in answer.messages[0]['content'] else len(set(answer.text)) / 9")
    run = luthier.train(made.recipe, overrides=["train.batch_size=8"], name="other", progress=False)
    assert all(record["bad_rewards"] > 0 and 0 < record["pairs"] < 0.5 for record in steps(run))


def test_held_out_prompts_have_pairs_too(tmp_path: Path) -> None:
    made = space(tmp_path, data={"validation": 4}, evaluate={"every": 2}, train={"max_steps": 2, "batch_size": 4})
    run = luthier.train(made.recipe, progress=False)
    (measured,) = [record for record in run.metrics() if "eval_loss" in record]
    assert measured["eval_loss"] == -measured["eval_reward"]
    assert 0 < measured["eval_pairs"] <= 1
    assert 0 <= measured["eval_accuracy"] <= 1
    assert {"eval_margin", "eval_gap", "eval_kl"} <= measured.keys()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_what_is_rewarded_becomes_likelier_also_on_held_out_prompts(tmp_path: Path, loss: str) -> None:
    made = space(tmp_path, {"loss": loss, "beta": 0.02}, data={"validation": 2}, evaluate={"every": 10}, method={"type": "full"})
    overrides = ["train.max_steps=30", "train.batch_size=6", "train.learning_rate=1e-2", "stage.answers=16"]
    run = luthier.train(made.recipe, overrides=overrides, progress=False)
    rewards = [record["reward"] for record in steps(run)]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.3
    measured = [record for record in run.metrics() if "eval_loss" in record]
    assert measured[-1]["eval_reward"] > 0.4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage.answers=1"], "stage.answers"),
        (["stage.loss=sigmoidal"], "stage.loss"),
        (["stage.loss=exo_pair"], "label_smoothing"),
        (["data.streaming=true", "data.order=window(8)"], "streaming"),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        luthier.train(space(tmp_path).recipe, overrides=overrides, progress=False)
