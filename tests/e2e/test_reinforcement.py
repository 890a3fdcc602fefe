"""Stages that learn from the policy's own answers, end to end: they learn what is rewarded, tell what happens, and resume to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.engine.rollout import Rollouts
from luthier.errors import Stopped, UserError
from luthier.runs.folder import RunFolder
from tests.e2e.test_preferences import StopAt, steps
from tests.workspace import Workspace, weights_of

REWARD = '''
def vowels(answers):
    """The share of vowels among the letters of an answer."""
    letters = [[letter for letter in answer.text.lower() if letter.isascii() and letter.isalpha()] for answer in answers]
    return [sum(letter in "aeiou" for letter in each) / max(len(each), 1) for each in letters]
'''
STAGES: dict[str, dict[str, Any]] = {
    "grpo": {"type": "grpo", "beta": 0.05},
    "grpo, twice": {"type": "grpo", "passes": 2, "mini_batches": 2, "beta": 0.05},
    "dr_grpo": {"type": "grpo", "variant": "dr_grpo"},
    "dapo": {"type": "grpo", "variant": "dapo", "importance_cap": 2.0},
    "gspo": {"type": "grpo", "variant": "gspo", "passes": 2},
    "rloo": {"type": "grpo", "variant": "rloo"},
    "reinforce++": {"type": "grpo", "variant": "reinforce++", "temperature": 0.8},
    "reinforce++_baseline": {"type": "grpo", "variant": "reinforce++_baseline"},
    "ppo": {"type": "ppo", "passes": 2, "mini_batches": 2, "answers": 2, "kl_target": 1.0, "kl_horizon": 100},
    "ppo, two models": {"type": "ppo", "passes": 2, "critic": "model", "critic_learning_rate": 1e-2},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def space_of(folder: Path, stage: dict[str, Any], **sections: Any) -> Workspace:
    """Eight questions, and a reward for vowels, which a random model writes by chance."""
    common = {"rewards": {"python": "reward.py:vowels", "name": "vowels"}, "answers": 4, "max_new_tokens": 8}
    train = {"max_steps": 6, "batch_size": 4, "learning_rate": 3e-3, "micro_batch_tokens": 256}
    method = {"type": "lora", "rank": 4}
    space = Workspace.make(folder, **{"stage": common | stage, "train": train, "method": method} | sections)
    (folder / "reward.py").write_text(REWARD)
    rows = [{"prompt": f"Say something about {n}{' please' * (n % 3)}."} for n in range(8)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return space


FAST = ("grpo, twice", "ppo")
"""Those that `make test` tries."""


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in STAGES])
def test_it_runs_tells_and_resumes_to_the_bit(tmp_path: Path, name: str) -> None:
    space = space_of(tmp_path, STAGES[name], checkpoint={"every": 5})
    run = luthier.train(space.recipe, progress=False)
    records = steps(run)
    assert len(records) == 6
    told = {"reward", "reward/vowels", "answer_tokens", "cut", "entropy", "ratio", "clip_low", "clip_high", "advantage/p50"}
    assert all(record.keys() >= told for record in records)
    assert 0 < records[0]["reward"] < 1
    assert all(record["grad_norm"] > 0 for record in records)
    assert all(sample["rewards"].keys() == {"vowels", "total"} for sample in run.samples())
    with pytest.raises(Stopped):  # told a step late: after step 2 half of a rollout of four steps is left
        luthier.train(space.recipe, name="broken", callbacks=(StopAt(3 if name == "dapo" else 1),), progress=False)
    resumed = luthier.resume("broken", progress=False)
    kept = ("loss", "reward", "grad_norm", "entropy")
    assert [[record[key] for key in kept] for record in steps(resumed)] == [[record[key] for key in kept] for record in records]
    expected, found = weights_of(run.path / "final"), weights_of(resumed.path / "final")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def told(run: luthier.Run, *names: str) -> list[list[float]]:
    return [[record[name] for name in names] for record in steps(run)]


SLOW = [pytest.param(change, marks=pytest.mark.slow) for change in ("data.packing=false", "two processes")]


@pytest.mark.parametrize("change", ["stage.rows=5", *SLOW])
def test_execution_changes_nothing_but_rounding(tmp_path: Path, change: str) -> None:
    """The first rollout is the same answer for answer; after it, rounding may tip a token, so only that one is compared."""
    space = space_of(tmp_path, STAGES["grpo, twice"], train={"max_steps": 4, "micro_batch_tokens": 512})
    reference = luthier.train(space.recipe, progress=False)
    if change == "two processes":
        done = space.luthier("train", "recipe.yaml", "--name", "other", "--nproc", "2")
        assert done.returncode == 0, done.stderr
        other = luthier.Run(RunFolder(tmp_path / "runs/other"))
    else:
        other = luthier.train(space.recipe, overrides=[change, "train.micro_batch_tokens=64"], name="other", progress=False)
    names = ("reward", "answer_tokens", "grad_norm", "entropy", "kl", "clip_high")
    for one, two in zip(told(other, *names), told(reference, *names), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("variant", ["grpo", "dapo"])
def test_answers_that_teach_nothing_are_counted_and_not_run(
    tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward that half of the prompts all earn: the same losses as when all answers are run, with half of the work."""
    space = space_of(tmp_path, {"type": "grpo", "variant": variant, "resample": 0, "skip_cut": False, "passes": 2})
    (tmp_path / "reward.py").write_text(
        "def vowels(answers):\n"
        "    return [1.0 if 'please' in each.messages[0]['content'] else len(set(each.text)) / 9 for each in answers]\n"
    )
    overrides = ["train.max_steps=2"]
    spared = luthier.train(space.recipe, overrides=overrides, progress=False)
    monkeypatch.setattr(Rollouts, "_sorted_out", lambda self, rows: (rows, rows[:0]))
    whole = luthier.train(space.recipe, overrides=overrides, name="whole", progress=False)
    names = ("loss", "grad_norm", "tokens", "reward", "equal_groups")
    for one, two in zip(told(spared, *names), told(whole, *names), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    assert all(record["learnt"] == 1 for record in steps(whole))
    assert all(0 < record["learnt"] < 1 for record in steps(spared))


@pytest.mark.slow
def test_what_is_rewarded_becomes_likelier_also_on_held_out_prompts(tmp_path: Path) -> None:
    space = space_of(tmp_path, {"type": "grpo"}, data={"validation": 2}, evaluate={"every": 10}, method={"type": "full"})
    overrides = ["train.max_steps=20", "train.learning_rate=1e-2", "stage.answers=16"]
    run = luthier.train(space.recipe, overrides=overrides, progress=False)
    rewards = [record["reward"] for record in steps(run)]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.3
    measured = [record for record in run.metrics() if "eval_loss" in record]
    assert [record["step"] for record in measured] == [10, 20]
    assert all(record["eval_loss"] == -record["eval_reward"] for record in measured)
    assert measured[-1]["eval_reward"] > 0.4


def test_a_bad_reward_is_named_and_its_answer_teaches_nothing(tmp_path: Path) -> None:
    space = space_of(tmp_path, {"type": "grpo"}, train={"max_steps": 2})
    (tmp_path / "reward.py").write_text(
        "def vowels(answers):\n    return [None if answer.messages[0]['content'].count('please') else 1.0 for answer in answers]\n"
    )
    run = luthier.train(space.recipe, progress=False)
    assert any(record["bad_rewards"] > 0 for record in steps(run))
    assert all(record["grad_norm"] == 0 for record in steps(run))  # what is left in a group earns the same
    assert "reward `vowels`:" in (run.path / "events.jsonl").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage.answers=1"], "stage.answers"),
        (["stage.variant=grop"], "Did you mean `grpo`"),
        (["stage.beta=0.1", "stage.kl_estimator=k1", "stage.kl_weighted=false"], "k1"),
        (["data.max_length=400", "stage.max_new_tokens=200"], "positions"),
        (["data.streaming=true", "data.order=window(8)"], "streaming"),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    space = space_of(tmp_path, {"type": "grpo"})
    with pytest.raises(UserError, match=message):
        luthier.train(space.recipe, overrides=overrides, progress=False)
