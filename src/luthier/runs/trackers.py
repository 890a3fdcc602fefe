"""Experiment trackers, each through its own library: Weights & Biases, MLflow, SwanLab.

A tracker does not let go back in time, and a resumed run does go back. So each attempt is a run of its own in the tracker, named
`first`, `first-attempt-2`, …, and grouped under the name of the run. Where it goes is the library's own affair and is set the
library's own way (`WANDB_PROJECT`, `WANDB_MODE`, `MLFLOW_TRACKING_URI`, `SWANLAB_MODE`, …); the project defaults to `luthier`.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from luthier.errors import UserError
from luthier.runs.jsonl import finite
from luthier.runs.records import Callback, EvaluationRecord, StartInfo, StepRecord
from luthier.runs.tensorboard import TensorBoardCallback

PROJECT = "luthier"


class Tracker(Callback):
    """What all trackers share: the names of the numbers, and a run in the tracker from `on_start` to `on_end`."""

    _run: Any = None

    def on_step(self, step: StepRecord) -> None:
        """The numbers of one step under `train/`."""
        values = {
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "grad_norm": step.grad_norm,
            "tokens_per_second": step.tokens_per_second,
            "epoch": step.epoch,
            **step.extra,
        }
        self._log({f"train/{name}": value for name, value in values.items()}, step.step)

    def on_evaluate(self, record: EvaluationRecord) -> None:
        """The numbers of one evaluation under `evaluate/`."""
        self._log({f"evaluate/{name}": value for name, value in record.values().items()}, record.step)

    def on_end(self, state: str) -> None:
        """Close the run, if one was opened."""
        if self._run is not None:
            self.finish(state)
            self._run = None

    def _log(self, values: dict[str, float], step: int) -> None:
        """Send what is a number; libraries differ in what they make of NaN."""
        if known := {name: value for name, value in values.items() if finite(value) is not None}:
            self.log(known, step)

    @abstractmethod
    def log(self, values: dict[str, float], step: int) -> None:
        """Send `values` of `step`."""

    @abstractmethod
    def finish(self, state: str) -> None:
        """Close the run."""


class WandbTracker(Tracker):
    """Weights & Biases."""

    def on_start(self, info: StartInfo) -> None:
        """Open a run."""
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=attempt_name(info),
            group=info.name,
            config=dict(info.recipe),
            dir=str(info.folder),
        )

    def log(self, values: dict[str, float], step: int) -> None:
        """Send `values` of `step`."""
        self._run.log(values, step=step)

    def finish(self, state: str) -> None:
        """Close the run."""
        self._run.finish(exit_code=1 if state == "failed" else 0)


class MlflowTracker(Tracker):
    """MLflow. Its small package speaks to a server; a database of its own needs the whole `mlflow`."""

    def on_start(self, info: StartInfo) -> None:
        """Open a run, and log the recipe as its parameters.

        Raises:
            UserError: MLflow cannot reach the place it would store the run in.
        """
        import mlflow

        self._mlflow = mlflow
        try:
            if not os.environ.get("MLFLOW_EXPERIMENT_NAME") and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
                mlflow.set_experiment(PROJECT)
            self._run = mlflow.start_run(run_name=attempt_name(info), tags={"group": info.name, "attempt": str(info.attempt)})
            mlflow.log_params(flat(info.recipe))
        except mlflow.exceptions.MlflowException as error:
            hint = "Set MLFLOW_TRACKING_URI to a server, or `pip install mlflow` for a database on this machine."
            reason = str(error).strip().split(". ")[0].rstrip(".")
            raise UserError(f"MLflow cannot store this run: {reason}", where="report_to", hint=hint) from error

    def log(self, values: dict[str, float], step: int) -> None:
        """Send `values` of `step`."""
        self._mlflow.log_metrics(values, step=step)

    def finish(self, state: str) -> None:
        """Close the run."""
        self._mlflow.end_run({"failed": "FAILED", "stopped": "KILLED"}.get(state, "FINISHED"))


class SwanlabTracker(Tracker):
    """SwanLab."""

    def on_start(self, info: StartInfo) -> None:
        """Open an experiment."""
        import swanlab

        self._swanlab = swanlab
        self._run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT", PROJECT),
            experiment_name=attempt_name(info),
            tags=[info.name],
            config=dict(info.recipe),
            logdir=str(info.folder / "swanlab"),
        )

    def log(self, values: dict[str, float], step: int) -> None:
        """Send `values` of `step`."""
        self._swanlab.log(values, step=step)

    def finish(self, state: str) -> None:
        """Close the experiment."""
        self._swanlab.finish()


_TRACKERS: dict[str, type[Callback]] = {
    "tensorboard": TensorBoardCallback,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "swanlab": SwanlabTracker,
}


def trackers(report_to: Sequence[str]) -> list[Callback]:
    """The callbacks for the recipe's `report_to`.

    Raises:
        UserError: a library is not installed; the message names the extra that brings it.
    """
    for name in report_to:
        if find_spec(name) is None:
            hint = f"Install it with `pip install 'luthier[{name}]'`, or leave `{name}` out."
            raise UserError(f"`{name}` is not installed", where="report_to", hint=hint)
    return [_TRACKERS[name]() for name in report_to]


def attempt_name(info: StartInfo) -> str:
    """The name of one attempt in a tracker."""
    return info.name if info.attempt == 1 else f"{info.name}-attempt-{info.attempt}"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings under dotted names, as text of at most 500 characters (MLflow's limit for a parameter)."""
    out: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = str(value)[:500]
    return out
