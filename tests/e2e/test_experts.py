"""Mixtures of experts in whole runs: train, stop, resume to the same bits, continue, talk, compare, merge."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import luthier
from luthier.errors import Stopped
from luthier.export.merge import merge
from luthier.runs.records import Callback, StepRecord
from tests.workspace import Workspace, weights_of

TOKENS = torch.arange(5, 25)[None]
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral, lora": ("mixtral", {"type": "lora", "rank": 4, "dropout": 0.1}),
    "mixtral, lora and routers": ("mixtral", {"type": "lora", "rank": 4, "train_router": True}),
    "mixtral, full and routers": ("mixtral", {"type": "full", "train_router": True}),
    "qwen3_moe, lora": ("qwen3_moe", {"type": "lora", "rank": 4, "rslora": True}),
    "deepseek, lora": ("deepseek", {"type": "lora", "rank": 4, "dropout": 0.1}),
    "deepseek, full": ("deepseek", {"type": "full"}),
}
QUICK = ("mixtral, lora and routers",)


class Interrupted(Callback):
    """Stops the run in its middle."""

    def on_step(self, step: StepRecord) -> None:
        if step.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNS])
def test_a_run_with_experts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    family, method = RUNS[name]
    train = {"learning_rate": 5e-3, "epochs": 2}
    space = Workspace.make(tmp_path, rows=12, family=family, method=method, train=train)
    straight = luthier.train(space.recipe, progress=False)
    records = [record for record in straight.metrics() if "loss" in record]
    assert records[-1]["loss"] < records[0]["loss"]
    measured = [record["router_balance"] for record in records if "router_balance" in record]
    assert len(measured) == (len(records) if method.get("train_router") else 0)
    with pytest.raises(Stopped):
        luthier.train(space.recipe, name="broken", callbacks=(Interrupted(),), progress=False)
    resumed = luthier.resume("broken", progress=False)
    expected, found = weights_of(straight.path / "final"), weights_of(resumed.path / "final")
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    assert isinstance(luthier.load("first").chat("Count to 3.", max_new_tokens=4), str)
    merged = AutoModelForCausalLM.from_pretrained(merge("first", tmp_path / "merged")).eval()
    plain = AutoModelForCausalLM.from_pretrained(space.folder / "model" if method["type"] == "lora" else straight.path / "final")
    if method["type"] == "lora":
        plain = peft.PeftModel.from_pretrained(plain, str(straight.path / "final")).eval()
        _continues(space, straight.path / "final")
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=TOKENS).logits, plain(input_ids=TOKENS).logits, atol=1e-4, rtol=0)


def _continues(space: Workspace, adapter: Path) -> None:
    """A new run begins where an adapter ended."""
    overrides = [f"model.adapter={adapter}", "train.max_steps=1", "train.learning_rate=1e-12"]
    further = luthier.train(space.recipe, overrides=overrides, name="further", progress=False)
    before, after = weights_of(adapter), weights_of(further.path / "final")
    assert before.keys() == after.keys()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_execution_never_changes_what_a_mixture_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed, padded, in smaller passes and on two processes: the same losses, the same balance, the same weights."""
    monkeypatch.chdir(tmp_path)
    method = {"type": "full", "train_router": True}
    train = {"learning_rate": 1e-2, "max_steps": 4, "router_aux_loss": 0.5, "optimizer": "sgd", "batch_size": 6}
    space = Workspace.make(tmp_path, rows=18, family="mixtral", method=method, train=train)

    def told(run: luthier.Run) -> list[float]:
        return [record[name] for record in run.metrics() if "loss" in record for name in ("loss", "router_balance")]

    first = luthier.train(space.recipe, progress=False)
    expected = weights_of(first.path / "final")
    ways = {
        "padded": ("data.packing=false",),
        "small": ("train.micro_batch_tokens=64",),
        "again": ("train.activation_checkpointing=full",),
    }
    for name, overrides in ways.items():
        luthier.train(space.recipe, overrides=list(overrides), name=name, progress=False)
    done = space.luthier("train", "recipe.yaml", "--name", "two", "--nproc", "2", LUTHIER_CACHE=os.environ["LUTHIER_CACHE"])
    assert done.returncode == 0, done.stderr
    for name in (*ways, "two"):
        run = luthier.Run.find(name)
        assert told(run) == pytest.approx(told(first), rel=1e-4), name
        for key, value in weights_of(run.path / "final").items():
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-5, msg=f"{name}: {key}")
