"""Stages that learn from the policy's own answers, end to end: they learn what is rewarded, tell what happens, and resume to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.errors import Stopped
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


FAST = {"dapo": 3, "grpo, twice": 1, "ppo": 1}
"""Watchers hear of a step one step late: after step 4 the next rollout begins, after step 2 half of one is left."""


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
    with pytest.raises(Stopped):
        luthier.train(space.recipe, name="broken", callbacks=(StopAt(FAST.get(name, 1)),), progress=False)
    resumed = luthier.resume("broken", progress=False)
    kept = ("loss", "reward", "grad_norm", "entropy")
    assert [[record[key] for key in kept] for record in steps(resumed)] == [[record[key] for key in kept] for record in records]
    expected, found = weights_of(run.path / "final"), weights_of(resumed.path / "final")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
