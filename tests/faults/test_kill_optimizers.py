"""`kill -9` and resume, bit for bit, with every kind of state that an optimizer or a precision keeps."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.engine.optimizers import kind_of
from luthier.errors import UserError
from luthier.recipe.schema import Train
from tests.workspace import Workspace, weights_of

RUNS: dict[str, dict[str, Any]] = {
    "muon": {"optimizer": "muon"},
    "adafactor": {"optimizer": "adafactor", "precision": "pure_bf16"},
    "kahan": {"optimizer": "sgd", "precision": "pure_bf16", "rounding": "kahan", "learning_rate": 0.05},
    "galore": {"optimizer": {"type": "galore", "rank": 4, "update_every": 2}},
    "apollo": {"optimizer": {"type": "apollo", "rank": 4, "update_every": 2}},
    "badam": {"optimizer": {"type": "badam", "switch_every": 2}, "precision": "bf16"},
    "schedule_free": {"optimizer": "schedule_free", "precision": "bf16"},
    "8 bits": {"optimizer": {"bits": 8}, "neftune": 5.0, "label_smoothing": 0.1},
    "lion": {"optimizer": {"type": "lion", "bits": 8}},
    "adam_mini": {"optimizer": "adam_mini", "precision": "fp16"},
}
ALWAYS = "schedule_free"


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == ALWAYS else pytest.mark.slow) for name in RUNS])
def test_killed_and_resumed_is_uninterrupted(name: str, tmp_path: Path) -> None:
    settings = {"epochs": 1, "batch_size": 4, "micro_batch_tokens": 128, "learning_rate": 1e-3, **RUNS[name]}
    try:
        kind_of(Train.model_validate(settings).optimizer)
    except UserError as error:
        pytest.skip(str(error))
    spaces = []
    for fault in ("", "loop.step:5"):
        recipe = {"method": {"type": "full"}, "train": settings, "data": {"validation": 4}, "evaluate": {"every": 2}}
        space = Workspace.make(tmp_path / (fault.replace(":", "-") or "straight"), rows=28, **recipe)
        given = {"LUTHIER_CACHE": str(tmp_path / "cache")} | ({"LUTHIER_FAULT": fault} if fault else {})
        run = space.luthier("train", "recipe.yaml", **given)
        assert run.returncode == (-signal.SIGKILL if fault else 0), run.stderr
        spaces.append(space)
    straight, killed = spaces
    resumed = killed.luthier("resume", "first", LUTHIER_CACHE=str(tmp_path / "cache"))
    assert resumed.returncode == 0, resumed.stderr
    found = weights_of(killed.run() / "final")
    for key, tensor in weights_of(straight.run() / "final").items():
        assert torch.equal(tensor, found[key]), key
