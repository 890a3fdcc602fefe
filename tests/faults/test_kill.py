"""`kill -9` at any moment loses at most the steps since the last checkpoint, and the resumed run ends in the same bits."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.workspace import Workspace, weights_of

LORA = {"method": {"type": "lora", "rank": 4, "dropout": 0.1}}
FULL = {"method": {"type": "full"}}
METHODS = {"lora": LORA, "full": FULL}
STEPS = 10
POINTS = [
    "store.mid-write",
    "store.before-rename",
    "checkpoint.mid-write:1",
    "checkpoint.mid-write:2",
    "checkpoint.before-manifest:1",
    "checkpoint.before-manifest:3",
    "checkpoint.before-rename:1",
    "checkpoint.before-rename:2",
    "checkpoint.mid-rotation:1",
    "checkpoint.mid-rotation:2",
]
QUICK = ("checkpoint.before-rename:2", "loop.step:5")


def make(folder: Path, method: str) -> Workspace:
    return Workspace.make(folder, **METHODS[method])


@pytest.fixture(scope="module", params=sorted(METHODS))
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Workspace]:
    """An uninterrupted run of each method."""
    space = make(tmp_path_factory.mktemp(request.param), request.param)
    done = space.luthier("train", "recipe.yaml", LUTHIER_CACHE=str(space.folder / "cache"))
    assert done.returncode == 0, done.stderr
    return request.param, space


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=[] if fault in QUICK else pytest.mark.slow)
        for fault in [*POINTS, *(f"loop.step:{step}" for step in range(1, STEPS + 1))]
    ],
)
def test_killed_and_resumed_is_uninterrupted(straight: tuple[str, Workspace], fault: str, tmp_path: Path) -> None:
    method, reference = straight
    space = make(tmp_path / "space", method)
    cache = str(space.folder / "cache")
    killed = space.luthier("train", "recipe.yaml", LUTHIER_FAULT=fault, LUTHIER_CACHE=cache)
    assert killed.returncode == -signal.SIGKILL, f"{fault} was not reached: {killed.stderr}"
    resumed = space.luthier("resume", "first", LUTHIER_CACHE=cache)
    assert resumed.returncode == 0, resumed.stderr
    expected, found = weights_of(reference.run() / "final"), weights_of(space.run() / "final")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert losses(space) == losses(reference)


def losses(space: Workspace) -> list[float]:
    """The losses of a run by step, superseded attempts left out."""
    by_step: dict[int, float] = {}
    for line in (space.run() / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "loss" in record:
            by_step[record["step"]] = record["loss"]
    assert sorted(by_step) == list(range(1, STEPS + 1))
    return [by_step[step] for step in sorted(by_step)]


def test_a_torn_checkpoint_is_passed_over_on_resume(straight: tuple[str, Workspace], tmp_path: Path) -> None:
    method, reference = straight
    space = make(tmp_path / "space", method)
    cache = str(space.folder / "cache")
    space.luthier("train", "recipe.yaml", LUTHIER_FAULT="loop.step:8", LUTHIER_CACHE=cache)
    newest = space.run() / "checkpoints" / "step-000006"
    weights = next(newest.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    resumed = space.luthier("resume", "first", LUTHIER_CACHE=cache)
    assert resumed.returncode == 0, resumed.stderr
    assert "step-000006 is damaged" in resumed.stdout + resumed.stderr
    for name, tensor in weights_of(reference.run() / "final").items():
        assert torch.equal(tensor, weights_of(space.run() / "final")[name]), name
