"""A reward model separates better from worse answers to prompts that it has not seen."""

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
