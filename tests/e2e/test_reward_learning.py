"""Learning from rewards: what reward models, GRPO and PPO gain on prompts that they have not seen."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def reward_pairs(root: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/reward_pairs.py`, whose data lie in `shared`."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module("reward_pairs")


def test_pairs_are_made_by_rule_and_held_out_by_prompt(reward_pairs: ModuleType) -> None:
    learnt, held = reward_pairs.pairs()
    assert (len(learnt), len(held)) == (1180, 252)
    assert not {pair["chosen"] for pair in learnt} & {pair["chosen"] for pair in held}
    by_rule = {pair["rule"]: pair for pair in reversed(held)}
    assert sorted(by_rule["shuffled"]["rejected"].split()) == sorted(by_rule["shuffled"]["chosen"].split())
    assert by_rule["cut"]["chosen"].startswith(by_rule["cut"]["rejected"])
    assert len(set(by_rule["repeated"]["rejected"].split()[:6])) <= 6 < len(by_rule["repeated"]["rejected"].split())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairs_of_unseen_prompts_are_separated(reward_pairs: ModuleType, tmp_path: Path, seed: int) -> None:
    assert reward_pairs.learn(tmp_path, seed)["all"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_practice_raises_the_share_of_right_answers_to_unseen_sums(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    found = importlib.import_module("sums").learn(tmp_path, seed)
    assert 0.2 <= found["before"] <= 0.6
    assert found["after"] >= found["before"] + 0.2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_trained_reward_model_is_pleased_and_the_model_stays_near_its_start(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    rlhf = importlib.import_module("rlhf")
    found = rlhf.learn(tmp_path, seed)
    assert found["pairs"] > 0.9
    assert found["after"] > found["before"] + 1
    assert found["kl"] < rlhf.TARGET
