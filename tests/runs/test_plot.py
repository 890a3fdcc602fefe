"""The loss curve."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.runs.callback import FolderCallback
from luthier.runs.folder import create_run
from luthier.runs.plot import PlotCallback, plot_loss, series, smooth
from luthier.runs.records import StartInfo, StepRecord
from luthier.runs.writer import RunWriter


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value() -> None:
    assert smooth([2.0] * 50, 0.9) == pytest.approx([2.0] * 50)
    assert smooth([5.0, 1.0], 0.9)[0] == pytest.approx(5.0)
    assert smooth([5.0, 1.0, 3.0], 0.0) == [5.0, 1.0, 3.0]


def test_missing_and_skipped_values_are_left_out() -> None:
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 2, "eval_loss": 1.5}, {"step": 3, "loss": 1.0}]
    assert series(records, "loss") == ([1, 3], [2.0, 1.0])
    assert series(records, "eval_loss") == ([2], [1.5])


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    assert not plot_loss([], tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_a_run_leaves_a_picture(tmp_path: Path) -> None:
    folder = create_run(tmp_path, "第一次")
    with RunWriter(folder) as writer:
        callbacks = [FolderCallback(writer), PlotCallback()]
        for callback in callbacks:
            callback.on_start(StartInfo("第一次", folder.path, 3, 3.0))
            for step in range(1, 4):
                callback.on_step(StepRecord(step, step / 3, 1 / step, 1e-4, 1.0, 10, 5, 0.1, 100.0))
        for callback in callbacks:
            callback.on_end("done")
    assert folder.plot.read_bytes().startswith(b"\x89PNG")
