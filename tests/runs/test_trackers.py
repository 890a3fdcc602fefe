"""Trackers call their libraries as those want to be called; a missing library is one line."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from luthier.errors import UserError
from luthier.runs import trackers as module
from luthier.runs.records import Callback, EvaluationRecord, StartInfo, StepRecord
from luthier.runs.tensorboard import TensorBoardCallback
from luthier.runs.trackers import MlflowTracker, SwanlabTracker, WandbTracker, flat, trackers

INFO = StartInfo("first", Path("runs/first"), 4, 2.0, first_step=3, attempt=2, recipe={"train": {"seed": 42}, "name": "first"})


def play(tracker: Callback) -> None:
    tracker.on_start(INFO)
    tracker.on_step(StepRecord(3, 1.5, math.nan, 1e-4, 1.0, 10, 5, 0.1, 100.0))
    tracker.on_evaluate(EvaluationRecord(4, 0.5, 1.65, 0.75))
    tracker.on_end("stopped")


@pytest.fixture
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    fake = MagicMock()
    monkeypatch.setitem(sys.modules, request.param, fake)
    return fake


@pytest.mark.parametrize("library", ["wandb"], indirect=True)
def test_wandb(library: MagicMock) -> None:
    play(WandbTracker())
    settings = library.init.call_args.kwargs
    assert (settings["name"], settings["group"], settings["config"]["train"]["seed"]) == ("first-attempt-2", "first", 42)
    step, evaluation = library.init.return_value.log.call_args_list
    assert "train/loss" not in step.args[0]
    assert step.args[0]["train/learning_rate"] == 1e-4
    assert (evaluation.args[0]["evaluate/loss"], evaluation.kwargs["step"]) == (0.5, 4)
    library.init.return_value.finish.assert_called_once_with(exit_code=0)


@pytest.mark.parametrize("library", ["mlflow"], indirect=True)
def test_mlflow(library: MagicMock) -> None:
    play(MlflowTracker())
    library.log_params.assert_called_once_with({"train.seed": "42", "name": "first"})
    assert library.log_metrics.call_args.kwargs == {"step": 4}
    library.end_run.assert_called_once_with("KILLED")


@pytest.mark.parametrize("library", ["mlflow"], indirect=True)
def test_mlflow_without_a_place_to_store_is_one_line(library: MagicMock) -> None:
    class MlflowException(Exception):
        pass

    library.exceptions = SimpleNamespace(MlflowException=MlflowException)
    library.set_experiment.side_effect = MlflowException("no store. Read on")
    with pytest.raises(UserError, match=r"cannot store this run: no store. Set MLFLOW_TRACKING_URI"):
        MlflowTracker().on_start(INFO)


@pytest.mark.parametrize("library", ["swanlab"], indirect=True)
def test_swanlab(library: MagicMock) -> None:
    play(SwanlabTracker())
    assert library.init.call_args.kwargs["experiment_name"] == "first-attempt-2"
    assert library.log.call_args.kwargs == {"step": 4}
    library.finish.assert_called_once_with()


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "swanlab" else object())
    with pytest.raises(UserError, match=r"`swanlab` is not installed.*luthier\[swanlab\]"):
        trackers(["tensorboard", "swanlab"])
    (only,) = trackers(["tensorboard"])
    assert isinstance(only, TensorBoardCallback)


@pytest.mark.parametrize("tracker", [WandbTracker, MlflowTracker, SwanlabTracker])
def test_a_run_that_fails_before_it_starts_has_nothing_to_close(tracker: type[Callback]) -> None:
    tracker().on_end("failed")


def test_settings_are_flattened_for_mlflow() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": "x" * 900}) == {"a.b.c": "1", "d": "x" * 500}
