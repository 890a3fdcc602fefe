"""TensorBoard shows the same history as the run folder."""

from __future__ import annotations

from pathlib import Path

from luthier.runs.records import EvaluationRecord, SampleRecord, StartInfo, StepRecord
from luthier.runs.tensorboard import TensorBoardCallback


def test_a_resumed_run_supersedes_the_steps_it_takes_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for attempt, first in ((1, 1), (2, 4)):
        callback = TensorBoardCallback()
        callback.on_start(StartInfo("first", tmp_path, 6, 6.0, first_step=first, attempt=attempt))
        callback.on_sample(SampleRecord(first - 1, "q", "a"))
        for step in range(first, 7):
            callback.on_step(StepRecord(step, step / 6, float(attempt), 1e-4, 1.0, 10, 5, 0.1, 100.0, extra={"margin": 0.5}))
        callback.on_evaluate(EvaluationRecord(6, 1.0, 2.7, 0.5))
        callback.on_end("done")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "train/learning_rate", "train/margin", "evaluate/loss", "evaluate/perplexity"} <= set(scalars)
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
    assert [event.step for event in events.Scalars("evaluate/loss")] == [6]
