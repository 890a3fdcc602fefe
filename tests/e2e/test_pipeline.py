"""Recipes of several stages: what feeds what, what is told before anything is trained, what is not done twice."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import luthier
from luthier.cli.app import run as command
from luthier.errors import Stopped, UserError
from luthier.recipe.pipeline import load_pipeline
from luthier.runs.folder import list_runs
from luthier.runs.records import Callback, StepRecord
from tests.workspace import alpaca_rows, small_model, weights_of


def pipeline(folder: Path, *stages: dict[str, Any], **shared: Any) -> Path:
    """A recipe of `sft` and `dpo` unless other stages are given."""
    small_model(folder / "model")
    (folder / "rows.json").write_text(json.dumps(alpaca_rows(8)))
    pairs = [{"prompt": f"Count to {n}.", "chosen": "1, 2, 3", "rejected": "one " * n} for n in range(2, 10)]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    values = {
        "name": "two",
        "model": "model",
        "data": {"max_length": 128},
        "method": {"type": "lora", "rank": 4},
        "train": {"max_steps": 5, "batch_size": 4, "learning_rate": 3e-3},
        "checkpoint": {"every": 2},
        "report_to": [],
        "stages": list(stages)
        or [{"stage": "sft", "data": {"train": "rows.json"}}, {"stage": "dpo", "data": {"train": "pairs.json"}}],
    }
    (folder / "two.yaml").write_text(yaml.safe_dump(values | shared))
    return folder / "two.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class StopAt(Callback):
    """Interrupts the run of one stage after a step."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step, self.now = stage, step, ""

    def on_note(self, text: str, shown: Any = None) -> None:
        self.now = text if text.startswith("stage ") else self.now

    def on_step(self, step: StepRecord) -> None:
        if f": {self.stage}" in self.now and step.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stage_continues_the_adapter_of_the_one_before(tmp_path: Path) -> None:
    last = luthier.train(pipeline(tmp_path), progress=False)
    assert last.path == Path("runs/two/dpo")
    assert last.recipe.model.adapter == str(tmp_path / "runs/two/sft/final")
    assert last.metrics()[0]["margin"] == pytest.approx(0, abs=1e-6)
    assert not (tmp_path / "runs/two/sft/merged").exists()


def test_another_method_begins_with_the_merged_product(tmp_path: Path) -> None:
    stages = (
        {"stage": "sft", "data": {"train": "rows.json"}},
        {"stage": "dpo", "data": {"train": "pairs.json"}, "method": {"type": "freeze", "layers": 1}},
        {"name": "again", "stage": "sft", "data": {"train": "rows.json"}},
    )
    last = luthier.train(pipeline(tmp_path, *stages), progress=False)
    assert luthier.Run.find("two/dpo").recipe.model.path == str(tmp_path / "runs/two/sft/merged")
    assert last.recipe.model.path == str(tmp_path / "runs/two/dpo/final")
    AutoModelForCausalLM.from_pretrained(tmp_path / "runs/two/sft/merged")


@pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.slow), "dpo"])
def test_interrupted_in_any_stage_it_goes_on_there_to_the_same_bits(tmp_path: Path, stage: str) -> None:
    recipe = pipeline(tmp_path)
    straight = luthier.train(recipe, name="straight", progress=False)
    with pytest.raises(Stopped):
        luthier.train(recipe, callbacks=(StopAt(stage, 2),), progress=False)
    resumed = luthier.resume("two", progress=False)
    expected, found = weights_of(straight.path / "final"), weights_of(resumed.path / "final")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    again = luthier.resume("two", progress=False)  # all is done
    assert again.status.attempt == resumed.status.attempt


def test_fields_are_set_for_all_stages_or_for_one(tmp_path: Path) -> None:
    given = ["train.learning_rate=1e-4", "stages.dpo.train.max_steps=2", "stages.0.train.batch_size=1"]
    sft, dpo = load_pipeline(pipeline(tmp_path), given).parts
    assert (sft.recipe.train.learning_rate, dpo.recipe.train.learning_rate) == (1e-4, 1e-4)
    assert (sft.recipe.train.max_steps, dpo.recipe.train.max_steps) == (5, 2)
    assert (sft.recipe.train.batch_size, dpo.recipe.train.batch_size) == (1, 4)


MISTAKES = {
    "a file that is not there": ({"stage": "dpo", "data": {"train": "gone.json"}}, "gone.json"),
    "data of another kind": ({"stage": "dpo", "data": {"train": "rows.json"}}, "learns from preference pairs"),
    "a key that is none": ({"stage": "dpo", "data": {"train": "pairs.json"}, "trian": {}}, r"two.yaml:\d+: unknown key `trian`"),
    "a stage that is none": ({"stage": "dpo", "from": "stf", "data": {"train": "pairs.json"}}, "Did you mean `sft`"),
    "twice the same name": ({"stage": "sft", "data": {"train": "rows.json"}}, "two stages are called `sft`"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_later_stage_is_told_before_the_first(tmp_path: Path, mistake: str) -> None:
    stage, message = MISTAKES[mistake]
    recipe = pipeline(tmp_path, {"stage": "sft", "data": {"train": "rows.json"}}, stage)
    with pytest.raises(UserError, match=message):
        luthier.train(recipe, progress=False)
    assert not (tmp_path / "runs").exists()


def test_the_command_line_lists_and_resumes_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = pipeline(tmp_path)
    assert command(["train", str(recipe), "-q"]) == 0
    assert command(["train", str(recipe), "-q"]) == 2
    assert "luthier resume two" in capsys.readouterr().err
    assert [run.reference for run in list_runs()] == ["two/sft", "two/dpo"]
    assert command(["resume", "two", "-q"]) == 0
    assert command(["resume", "two", "train.max_steps=9"]) == 2
    assert "two/STAGE" in capsys.readouterr().err
    assert command(["runs", "list"]) == 0
    assert "two/dpo" in capsys.readouterr().out


@pytest.mark.slow
def test_stages_run_on_two_ranks_and_in_the_background(tmp_path: Path) -> None:
    recipe = pipeline(tmp_path)
    assert command(["train", str(recipe), "--nproc", "2", "-q"]) == 0
    assert luthier.Run.find("two/dpo").status.state == "done"
    assert command(["train", str(recipe), "--name", "behind", "--detach"]) == 0
