"""Stages that learn from pairs and opinions, end to end: they begin at the reference, resume to the bit, load elsewhere."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.errors import Stopped, UserError
from tests.e2e.interrupted import StopAt, steps
from tests.workspace import Workspace, small_model, weights_of

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "rank": 4},
    "loftq": {"type": "lora", "rank": 4, "init": "loftq"},
    "freeze": {"type": "freeze", "layers": 1},
    "full": {"type": "full"},
}


def space_of(folder: Path, method: Any = "lora", stage: Any = "dpo", **sections: Any) -> Workspace:
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
    defaults = {"model": model, "method": METHODS[method] if isinstance(method, str) else method, "train": train}
    space = Workspace.make(folder, stage=stage, **defaults | sections)
    (folder / "rows.json").write_text(json.dumps(rows))
    return space


@pytest.mark.parametrize(
    "method", [name if name in ("lora", "full") else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
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


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
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


def test_a_batch_of_one_opinion_is_refused(tmp_path: Path) -> None:
    space = space_of(tmp_path, stage="kto", train={"batch_size": 1})
    with pytest.raises(UserError, match=r"`train.batch_size` must be above 1 for stage `kto`"):
        luthier.train(space.recipe, progress=False)


WRONG = {
    "stage.label_smoothing": {"type": "dpo", "loss": "hinge", "label_smoothing": 0.1},
    "exo_pair": {"type": "dpo", "loss": "exo_pair"},
    "stage.divergence": {"type": "dpo", "loss": {"sigmoid": 1.0, "nca_pair": 1.0}, "divergence": "js"},
    "stage.loss": {"type": "dpo", "loss": {}},
}


@pytest.mark.parametrize("named", WRONG)
def test_a_setting_without_a_meaning_is_refused(tmp_path: Path, named: str) -> None:
    with pytest.raises(UserError, match=named):
        luthier.train(space_of(tmp_path, stage=WRONG[named]).recipe, progress=False)


MEMORY = """
import sys
import torch
import luthier
from luthier.engine.verdict import peak_memory
luthier.train(sys.argv[1], overrides=sys.argv[2:], progress=False)
print(peak_memory(torch.device("cpu")))
"""


@pytest.mark.slow
def test_a_reference_of_an_adapter_costs_no_second_model(tmp_path: Path) -> None:
    """Peak memory of whole processes: ORPO, which has no reference, beside DPO."""
    space = space_of(tmp_path, train={"max_steps": 2, "batch_size": 2, "micro_batch_tokens": 128})
    small_model(tmp_path / "large", hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
    weights = sum(file.stat().st_size for file in (tmp_path / "large").glob("*.safetensors"))

    def peak(name: str, *changes: str) -> int:
        command = [sys.executable, "-c", MEMORY, str(space.recipe), f"name={name}", "model.path=large", *changes]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return int(done.stdout.splitlines()[-1])

    alone, beside = peak("alone", "stage=orpo"), peak("beside", "stage=dpo")
    assert beside - alone < 0.15 * weights


FULL_LOGITS = """
import torch
from luthier.engine.verdict import peak_memory
from luthier.objectives import objective_of
from luthier.recipe.schema import BCO, CPO, DPO, KTO, ORPO, SimPO
from tests.preferences import beside, drawn_of, learnt, pairs

models = beside("llama", vocab_size=128_000)
rows = pairs([16] * 4, [240] * 4, [240] * 4)
learnt(*models, objective_of(DPO()), drawn_of(rows[:2], paired=True))
before = peak_memory(torch.device("cpu"))
for stage in (DPO(), DPO(loss="aot"), ORPO(), SimPO(), CPO(), KTO(), BCO()):
    learnt(*models, objective_of(stage), drawn_of(rows, paired=not isinstance(stage, KTO | BCO)))
print(peak_memory(torch.device("cpu")) - before)
"""


@pytest.mark.slow
def test_no_stage_holds_all_logits(root: Path) -> None:
    """1,920 answers' tokens of a vocabulary of 128,000 would be 983 MB of logits; nothing near that is ever held."""
    done = subprocess.run([sys.executable, "-c", FULL_LOGITS], cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 0.4 * 8 * 240 * 128_000 * 4


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_margins_of_unseen_examples_move(
    root: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The embedded model on real answers of other models. A held-out set is small, so three seeds, each with its own, are averaged."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    learning = importlib.import_module("preference_learning")
    runs = [learning.learn(tmp_path, stage, seed) for seed in range(3)]
    loss, accuracy, margin = (sum(run[name] for run in runs) / len(runs) for name in ("loss", "accuracy", "margin"))
    assert margin > 0.05
    assert accuracy > 0.55
    assert loss < learning.START[stage]
