"""Checkpoints are whole or absent, rotation spares the best and the last, and a torn one is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from luthier.engine.checkpoint import MANIFEST, Checkpoints, find_fault, publish_final, step_of
from luthier.errors import UserError


def save(checkpoints: Checkpoints, step: int) -> Path:
    def write_weights(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes([step % 256]) * 100)
        (folder / "config.json").write_text("{}")

    return checkpoints.save(step, write_weights, {"x": torch.tensor([float(step)])}, {"train": {"step": step}})


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    folder = save(checkpoints, 7)
    assert folder.name == "step-000007"
    assert find_fault(folder) is None
    good = checkpoints.last_good(pytest.fail)
    assert good is not None
    assert (good.step, good.state["train"]["step"], good.tensors["x"].item()) == (7, 7, 7.0)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "no manifest", "broken manifest"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save(checkpoints, 1)
    folder = save(checkpoints, 2)
    weights = folder / "model.safetensors"
    match damage:
        case "truncate":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "flip":
            weights.write_bytes(b"x" + weights.read_bytes()[1:])
        case "remove":
            weights.unlink()
        case "no manifest":
            (folder / MANIFEST).unlink()
        case _:
            (folder / MANIFEST).write_text("{")
    said: list[str] = []
    good = checkpoints.last_good(said.append)
    assert good is not None
    assert good.step == 1
    assert len(said) == 1
    assert "step-000002 is damaged" in said[0]


def test_rotation_spares_the_best_and_the_last(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in range(1, 6):
        save(checkpoints, step)
        checkpoints.rotate(step, best=2 if step >= 2 else None)
    assert [step_of(folder) for folder in checkpoints.all()] == [2, 4, 5]


def test_rotation_does_not_count_what_is_damaged(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    save(checkpoints, 3)
    (save(checkpoints, 6) / MANIFEST).unlink()
    save(checkpoints, 4)
    checkpoints.rotate(4, best=None)
    good = checkpoints.last_good(lambda text: None)
    assert good is not None
    assert good.step == 4


def test_a_disk_that_fills_while_weights_are_written_is_said_too(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def write_weights(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(UserError, match="disk is full"):
        checkpoints.save(1, write_weights, {}, {})
    assert not list(checkpoints.folder.iterdir())


def test_an_edit_of_the_result_does_not_reach_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = save(Checkpoints(tmp_path / "checkpoints"), 1)
    publish_final(checkpoint, tmp_path / "final")
    (tmp_path / "final" / "config.json").write_text('{"edited": true}')
    assert find_fault(checkpoint) is None


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save(checkpoints, 1)
    monkeypatch.setenv("LUTHIER_FAULT", "checkpoint.before-manifest:1:ENOSPC")
    monkeypatch.setattr("luthier.faults._reached", {})
    with pytest.raises(UserError, match="disk is full"):
        save(checkpoints, 2)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-000001"]


def test_leftovers_are_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save(checkpoints, 1)
    leftover = checkpoints.folder / ".tmp-step-000002-99"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    good = checkpoints.last_good(pytest.fail)
    assert good is not None
    assert good.step == 1
    assert leftover.exists()  # another process may be writing it; who holds the run's lock cleans
    checkpoints.clean()
    assert not leftover.exists()


def test_final_outlives_its_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    publish_final(save(checkpoints, 1), tmp_path / "final")
    save(checkpoints, 2)
    checkpoints.rotate(2, best=None)
    assert (tmp_path / "final" / "model.safetensors").read_bytes() == bytes([1]) * 100
    assert not (tmp_path / "final" / "resume").exists()
