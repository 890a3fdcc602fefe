"""The whole way on the embedded model: what each stage of `tiny/rlhf` is to show."""

from __future__ import annotations

from pathlib import Path

import pytest

import luthier


@pytest.mark.slow
def test_every_stage_of_the_way_does_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    luthier.train("tiny/rlhf", name="way", progress=False)
    runs = {name: luthier.Run.find(f"way/{name}").metrics() for name in ("pt", "sft", "rm", "ppo")}
    for name in ("pt", "sft"):
        losses = [record["loss"] for record in runs[name] if "loss" in record]
        assert losses[-1] < 0.6 * losses[0], name
    assert [record["eval_accuracy"] for record in runs["rm"] if "eval_accuracy" in record][-1] > 0.9
    rewards = [record["reward"] for record in runs["ppo"] if "reward" in record]
    before, after = sum(rewards[:4]) / 4, sum(rewards[-12:]) / 12
    assert after > before + 1.5
    assert [record["kl"] for record in runs["ppo"] if "kl" in record][-1] < 4
    assert luthier.load("way/ppo").chat("What is 21 + 34?").startswith("21 + 34 = ")
