"""What a reader makes of a run: the history of the weights that exist, and a state that can be trusted."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.runs import process
from luthier.runs.folder import RunFolder, create_run
from luthier.runs.reader import RunReader, without_superseded
from luthier.runs.writer import RunWriter


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=5))
def test_the_kept_steps_are_each_taken_once_and_in_order(attempts: list[tuple[int, int]]) -> None:
    """Each attempt goes back to some step it has reached, takes some more, and dies."""
    records, first, reached = [], {}, 0
    for attempt, (back, more) in enumerate(attempts, start=1):
        first[attempt] = max(0, reached - back) + 1
        reached = first[attempt] - 1 + more
        records += [{"attempt": attempt, "step": step} for step in range(first[attempt], reached + 1)]
    kept = without_superseded(records, first)
    assert [record["step"] for record in kept] == list(range(1, reached + 1))
    assert all(any(record is other for other in records) for record in kept)


def test_an_evaluation_between_logged_steps_is_superseded_too(tmp_path: Path) -> None:
    """With `log_every: 10` no training record says where the second attempt began; its start event does."""
    folder = create_run(tmp_path, "first")
    with RunWriter(folder) as writer:
        writer.event("start", first_step=1)
        writer.metric(500, loss=1.0)
        writer.metric(505, eval_loss=1.0)
        writer.sample(505, "q", "old")
    with RunWriter(folder) as writer:
        writer.event("start", first_step=501)
        writer.metric(510, loss=0.9)
    reader = RunReader(folder)
    assert [record["step"] for record in reader.metrics()] == [500, 510]
    assert reader.samples() == []
    assert [event["first_step"] for event in reader.events()] == [1, 501]


def status(folder: RunFolder, **changes: object) -> None:
    fields = json.loads(folder.status.read_text()) | changes
    folder.status.write_text(json.dumps(fields))


def test_running_means_this_very_process(tmp_path: Path) -> None:
    folder = create_run(tmp_path, "first")
    RunWriter(folder).close()
    reader = RunReader(folder)
    status(folder, state="running", pid=os.getpid(), pid_started=process.started())
    assert reader.status().active
    status(folder, pid_started=process.started() - 3600)  # the number was given to another process since
    assert reader.status().state == "lost"
    status(folder, host="elsewhere", heartbeat=time.time())  # its processes cannot be seen from here
    assert reader.status().state == "running"
    status(folder, heartbeat=time.time() - 3600)
    assert reader.status().state == "lost"
    status(folder, state="done")
    assert reader.status().state == "done"


def test_a_run_of_a_newer_luthier_is_refused(tmp_path: Path) -> None:
    folder = create_run(tmp_path, "first")
    RunWriter(folder).close()
    status(folder, version=99)
    with pytest.raises(UserError, match="newer Luthier"):
        RunReader(folder).status()
    with pytest.raises(UserError, match="newer Luthier"):
        RunWriter(folder)
    status(folder, version=1)
    RunWriter(folder).close()  # the refused writer did not keep the lock
