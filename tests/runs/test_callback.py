"""What the engine reports is what the run folder holds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from luthier.runs.callback import FolderCallback
from luthier.runs.folder import RunFolder, create_run
from luthier.runs.reader import RunReader
from luthier.runs.records import EvaluationRecord, SampleRecord, StartInfo, StepRecord
from luthier.runs.writer import RunWriter


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return create_run(tmp_path, "first")


def record(step: int, loss: float = 2.0, **extra: float) -> StepRecord:
    return StepRecord(step, step / 4, loss, 1e-4, 0.5, 100, 40, 0.1, 1000.0, skipped=not math.isfinite(loss), extra=extra)


def test_a_run_from_start_to_end(folder: RunFolder) -> None:
    with RunWriter(folder) as writer:
        callback = FolderCallback(writer)
        callback.on_prepare("tokenising", 5, 10)
        callback.on_note("data: 10 rows")
        callback.on_start(StartInfo("first", folder.path, 2, 4.0))
        callback.on_sample(SampleRecord(0, "q", "a"))
        callback.on_step(record(1))
        callback.on_step(record(2, math.nan, margin=0.25))
        callback.on_evaluate(EvaluationRecord(2, 1.0, math.e, 0.5, best=True))
        callback.on_save(2, folder.checkpoint(2))
        callback.on_end("done")
        writer.status("done")
    reader = RunReader(folder)
    first, second, evaluation = reader.metrics()
    assert {
        "step",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens",
        "supervised_tokens",
        "tokens_per_second",
        "epoch",
    } <= first.keys()
    assert (second["loss"], second["skipped"], second["margin"]) == (None, True, 0.25)
    assert (evaluation["eval_loss"], evaluation["eval_accuracy"], evaluation["best"]) == (1.0, 0.5, True)
    assert [(event["kind"], event.get("folder")) for event in reader.events()] == [
        ("note", None),
        ("start", None),
        ("save", "checkpoints/step-000002"),
        ("end", None),
    ]
    assert [sample["answer"] for sample in reader.samples()] == ["a"]
    status = reader.status()
    assert (status.state, status.step, status.total_steps) == ("done", 2, 2)
    assert (status.fields["best_step"], status.fields["checkpoint"]) == (2, 2)
    log = folder.log().read_text()
    assert log.index("run first: 2 steps") < log.index("step 1/2") < log.index("perplexity") < log.index("saved checkpoints/")


def test_a_resumed_run_starts_its_status_where_it_goes_back_to(folder: RunFolder) -> None:
    for attempt, first in ((1, 1), (2, 3)):
        with RunWriter(folder) as writer:
            callback = FolderCallback(writer)
            callback.on_start(StartInfo("first", folder.path, 9, 4.0, first_step=first, attempt=attempt))
            assert RunReader(folder).status().step == first - 1
            for step in range(first, first + 4):
                callback.on_step(record(step, loss=float(attempt)))
    assert [(line["step"], line["loss"]) for line in RunReader(folder).metrics()] == [
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 2),
        (5, 2),
        (6, 2),
    ]
