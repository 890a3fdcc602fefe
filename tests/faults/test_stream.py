"""A run from a stream: the bits of a run from the file, and `kill -9` costs no reading from the start."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workspace import Workspace, alpaca_rows, weights_of

STEPS = 10


def make(folder: Path, **data: Any) -> Workspace:
    """A workspace with one source in lines, of which ten steps see about a half, and a validation file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("rows", 90), ("held", 4)):
        lines = [json.dumps(row) for row in alpaca_rows(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    section = {"train": ["rows.jsonl"], "validation": "held.jsonl", "order": "window(8)", "max_length": 128, **data}
    return Workspace.make(folder, data=section, train={"max_steps": STEPS}, checkpoint={"every": 3})


def final(space: Workspace) -> dict[str, Any]:
    return weights_of(space.run() / "final")


def same(one: Workspace, other: Workspace) -> bool:
    first, second = final(one), final(other)
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """An uninterrupted run from the file, through a store."""
    space = make(tmp_path_factory.mktemp("stored"))
    done = space.luthier("train", "recipe.yaml", LUTHIER_CACHE=str(space.folder / "cache"))
    assert done.returncode == 0, done.stderr
    return space


def test_a_stream_and_a_file_train_to_the_same_bits(stored: Workspace, tmp_path: Path) -> None:
    space = make(tmp_path / "space", streaming=True)
    done = space.luthier("train", "recipe.yaml", LUTHIER_CACHE=str(space.folder / "cache"))
    assert done.returncode == 0, done.stderr
    assert same(space, stored)
    plan = json.loads((space.run() / "plan.json").read_text())
    assert plan["data"]["examples"] == 4 * STEPS
    assert plan["data"]["validation"] == 4


@pytest.mark.parametrize("fault", ["loop.step:8", pytest.param("checkpoint.before-rename:2", marks=pytest.mark.slow)])
def test_a_killed_stream_goes_on_without_what_lies_behind_it(stored: Workspace, tmp_path: Path, fault: str) -> None:
    """The rows before the cursor are made unreadable, so whoever read them would fail."""
    space = make(tmp_path / "space", streaming=True)
    cache = str(space.folder / "cache")
    killed = space.luthier("train", "recipe.yaml", LUTHIER_FAULT=fault, LUTHIER_CACHE=cache)
    assert killed.returncode == -signal.SIGKILL, f"{fault} was not reached: {killed.stderr}"
    saved = max((space.run() / "checkpoints").glob("step-??????"))
    cursor = json.loads((saved / "resume" / "state.json").read_text())["cursor"]
    window = cursor["mixture"]["streams"][0]["mark"]
    assert window["row"] + 9 >= 4 * cursor["step"] > window["row"] > 2
    file = space.folder / "rows.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    for row in range(2, window["row"]):  # the first two tell how the file is laid out
        lines[row] = b"x" * (len(lines[row]) - 1) + b"\n"
    file.write_bytes(b"".join(lines))
    resumed = space.luthier("resume", "first", LUTHIER_CACHE=cache)
    assert resumed.returncode == 0, resumed.stderr
    assert same(space, stored)
