"""One writer a run, and a status that tells the truth whatever happens to it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.errors import Stopped, UserError
from luthier.runs.folder import RunFolder, create_run
from luthier.runs.reader import RunReader
from luthier.runs.writer import RunWriter

CHILD = """
import sys, time
from pathlib import Path
from luthier.runs.folder import RunFolder
from luthier.runs.writer import RunWriter
writer = RunWriter(RunFolder(Path(sys.argv[1])))
writer.status("running", total_steps=10**6)
step = 0
while True:
    step += 1
    writer.metric(step, loss=1 / step)
    if step == 100:
        print("going", flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return create_run(tmp_path, "first")


@pytest.fixture
def child(folder: RunFolder) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(folder.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "going\n"
    yield process
    process.kill()
    process.wait()


def test_every_line_says_which_attempt_and_when(folder: RunFolder) -> None:
    with RunWriter(folder, 3) as writer:
        writer.metric(7, loss=0.5)
        writer.event("save", step=7)
        writer.sample(7, "你是谁？", "我是黄大力的智能助手。")
    for path in (folder.metrics, folder.events, folder.samples):
        record = json.loads(path.read_text())
        assert (record["seq"], record["attempt"], record["step"]) == (0, 3, 7)
        assert abs(record["time"] - time.time()) < 60


def test_attempts_are_counted(folder: RunFolder) -> None:
    for attempt in (1, 2, 3):
        with RunWriter(folder) as writer:
            assert writer.attempt == attempt
            writer.status("stopped")
    assert RunReader(folder).status().attempt == 3


def test_a_second_writer_is_refused_and_leaves_no_trace(folder: RunFolder) -> None:
    with RunWriter(folder) as writer:
        writer.status("running")
        with pytest.raises(UserError, match="already running"):
            RunWriter(folder)
        assert RunReader(folder).status().attempt == 1
    RunWriter(folder).close()


def test_a_killed_writer_is_lost_its_lock_is_free_and_its_lines_are_whole(folder: RunFolder, child: subprocess.Popen) -> None:
    assert RunReader(folder).status().state == "running"
    with pytest.raises(UserError, match="already running"):
        RunWriter(folder)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert RunReader(folder).status().state == "lost"
    steps = [record["step"] for record in RunReader(folder).metrics()]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 100
    with RunWriter(folder) as writer:
        writer.event("start", first_step=51)
        writer.metric(51, loss=0.25)
        assert writer.attempt == 2
    assert [record["step"] for record in RunReader(folder).metrics()] == list(range(1, 52))


def test_progress_reaches_the_disk_with_the_heartbeat(folder: RunFolder) -> None:
    with RunWriter(folder, heartbeat=0.02) as writer:
        writer.status("running", total_steps=10)
        first = RunReader(folder).status()
        assert (first.state, first.step, first.total_steps) == ("running", 0, 10)
        writer.progress(step=4)
        deadline = time.monotonic() + 20
        while RunReader(folder).status().step != 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        last = RunReader(folder).status()
        assert last.step == 4
        assert last.heartbeat > first.heartbeat


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (Stopped("saved"), "stopped", "saved"),
        (ValueError("odd"), "failed", "odd"),
        (KeyError(), "failed", "KeyError"),
        (KeyboardInterrupt(), "stopped", "interrupted before it could save"),
    ],
)
def test_an_error_on_the_way_out_is_the_state(folder: RunFolder, error: BaseException, state: str, message: str) -> None:
    with pytest.raises(type(error)), RunWriter(folder):
        raise error
    status = RunReader(folder).status()
    assert (status.state, status.fields["message"]) == (state, message)


def test_a_state_that_was_set_is_not_overwritten_and_a_message_does_not_outlive_its_attempt(folder: RunFolder) -> None:
    def stop_by_hand() -> None:
        with RunWriter(folder) as writer:
            writer.status("stopped", message="by hand", best_step=3)
            raise Stopped("saved")

    with pytest.raises(Stopped):
        stop_by_hand()
    assert RunReader(folder).status().fields["message"] == "by hand"
    with RunWriter(folder):
        fields = RunReader(folder).status().fields
    assert "message" not in fields
    assert fields["best_step"] == 3


def test_a_resume_that_is_refused_leaves_the_status_as_it_was(folder: RunFolder) -> None:
    with RunWriter(folder) as writer:
        writer.status("done", step=12)

    def refused() -> None:
        with RunWriter(folder):
            raise UserError("run `first` is complete")

    with pytest.raises(UserError, match="complete"):
        refused()
    status = RunReader(folder).status()
    assert (status.state, status.step, status.attempt) == ("done", 12, 1)


def test_numbers_that_json_cannot_hold_are_null_in_the_status(folder: RunFolder) -> None:
    with RunWriter(folder) as writer:
        writer.status("running", loss=float("nan"))
        assert json.loads(folder.status.read_text())["loss"] is None


def test_the_log_is_plain_lines_with_the_time_of_day(folder: RunFolder) -> None:
    with RunWriter(folder) as writer:
        writer.log("one\ntwo")
    first, second = folder.log().read_text().splitlines()
    assert first.endswith("  one")
    assert second.endswith("  two")
