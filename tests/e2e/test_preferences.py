"""Stages that learn from pairs, end to end: they begin at the reference, resume to the bit, and their reference costs what it says."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.errors import Stopped
from luthier.runs.records import Callback, StepRecord
from tests.workspace import Workspace, weights_of

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "rank": 4},
    "loftq": {"type": "lora", "rank": 4, "init": "loftq"},
    "freeze": {"type": "freeze", "layers": 1},
    "full": {"type": "full"},
}


def space_of(folder: Path, method: str = "lora", stage: Any = "dpo", **sections: Any) -> Workspace:
    """Twelve pairs: the better answer counts, the worse one repeats itself."""
    rows = [
        {
            "prompt": f"Count to {n}.",
            "chosen": ", ".join(str(i) for i in range(1, n + 1)),
            "rejected": " ".join(["one"] * n),
        }
        for n in range(2, 14)
    ]
    model = {"path": "model"} | ({"quantization": {"bits": 4}} if method == "loftq" else {})
    train = {"epochs": 3, "batch_size": 4, "learning_rate": 3e-3, "micro_batch_tokens": 128}
    space = Workspace.make(folder, model=model, stage=stage, method=METHODS[method], **{"train": train} | sections)
    (folder / "rows.json").write_text(json.dumps(rows))
    return space


def steps(run: luthier.Run) -> list[dict[str, Any]]:
    return [record for record in run.metrics() if "loss" in record]


class StopAt(Callback):
    """Interrupts the run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: StepRecord) -> None:
        if step.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("method", METHODS)
def test_it_begins_at_the_reference_learns_the_margin_and_resumes_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.chdir(tmp_path)
    space = space_of(tmp_path, method)
    run = luthier.train(space.recipe, progress=False)
    first, *_, last = steps(run)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["margin"] == pytest.approx(0, abs=1e-6)
    assert last["margin"] > 0.1
    assert last["accuracy"] == 1
    with pytest.raises(Stopped):
        luthier.train(space.recipe, name="broken", callbacks=(StopAt(4),), progress=False)
    resumed = luthier.resume("broken", progress=False)
    assert [record["loss"] for record in steps(resumed)] == [record["loss"] for record in steps(run)]
    expected, found = weights_of(run.path / "final"), weights_of(resumed.path / "final")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reference_that_was_computed_before_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.chdir(tmp_path)
    space = space_of(tmp_path, method, data={"validation": 4})
    found = [
        luthier.train(space.recipe, overrides=[f"stage.reference={way}"], name=way, progress=False)
        for way in ("auto", "precompute")
    ]
    auto, precomputed = ([record["loss"] for record in steps(run)] for run in found)
    assert precomputed == pytest.approx(auto, rel=1e-5)
    measured = [[record["eval_loss"] for record in run.metrics() if "eval_loss" in record] for run in found]
    assert measured[1] == pytest.approx(measured[0], rel=1e-5)


def test_a_continued_adapter_is_its_own_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = space_of(tmp_path)
    luthier.train(space.recipe, progress=False)
    again = luthier.train(space.recipe, overrides=["model.adapter=runs/first/final"], name="again", progress=False)
    assert steps(again)[0]["margin"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(Stopped):
        luthier.train(
            space.recipe, overrides=["model.adapter=runs/first/final"], name="broken", callbacks=(StopAt(4),), progress=False
        )
    resumed = luthier.resume("broken", progress=False)
    assert [record["loss"] for record in steps(resumed)] == [record["loss"] for record in steps(again)]


def test_evaluation_tells_margins_and_no_perplexity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = luthier.train(space_of(tmp_path, data={"validation": 4}).recipe, progress=False)
    measured = [record for record in run.metrics() if "eval_loss" in record]
    assert measured[-1]["eval_margin"] > 0
    assert 0 <= measured[-1]["eval_accuracy"] <= 1
    assert "eval_perplexity" not in measured[-1]


def test_orpo_needs_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, *_, last = steps(luthier.train(space_of(tmp_path, stage="orpo").recipe, progress=False))
    assert last["loss"] < first["loss"]
    assert last["margin"] > first["margin"]
