"""Runs that are started here, in the background and on ranks."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.runs.folder import RunFolder
from luthier.runs.reader import RunReader

Luthier = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_overrides_may_stand_anywhere_after_the_recipe(workplace: Path, luthier: Luthier) -> None:
    done = luthier("train", "r.yaml", "train.max_steps=2", "--name", "try2", "method.rank=16", "-v")
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("run try2 done, after step 2")
    assert [record["step"] for record in RunReader(RunFolder(workplace / "runs" / "try2")).metrics()] == [1, 2]


def test_quiet_prints_the_result_and_output_moves_the_runs(workplace: Path, luthier: Luthier) -> None:
    done = luthier("train", "r.yaml", "--name", "1", "--output", "2024", "-q")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert (workplace / "2024" / "1" / "status.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.yaml",), "missing.yaml"),
        (("r.yaml", "method.rnak=4"), "rank"),
        (("r.yaml", "method.rank=abc"), "method.rank"),
        (("r.yaml", "--learning-rate", "1e-4"), "without dashes, here `train.learning_rate=…`"),
        (("r.yaml", "--bf16"), "without dashes, such as"),
        (("r.yaml", "--name", "a/b", "--detach"), "cannot name a run"),
        (("r.yaml", "method.rank=abc", "--detach"), "method.rank"),
        (("r.yaml", "method.rank=abc", "--nproc", "2"), "method.rank"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(
    workplace: Path, luthier: Luthier, arguments: tuple[str, ...], message: str
) -> None:
    done = luthier("train", *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (workplace / "runs").exists()


def test_a_bug_is_a_traceback_and_1(workplace: Path, luthier: Luthier) -> None:
    done = luthier("train", "r.yaml", FAKE="bug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: a bug"


def test_detached_followed_stopped_and_resumed(workplace: Path, luthier: Luthier, started: Start) -> None:
    """The life of a run in the background, by commands alone."""
    done = luthier("train", "r.yaml", "--name", "first", "--detach", FAKE="long")
    assert done.returncode == 0, done.stderr
    assert "runs in the background" in done.stdout
    assert "luthier logs first -f" in done.stdout
    follower = started("logs", "first", "-f")
    assert "running" in luthier("runs", "list").stdout
    refused = luthier("resume", "first")
    assert refused.returncode == 2
    assert "already running" in refused.stderr

    stopped = luthier("stop", "first")
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stdout.splitlines()[-1] == ("run first is stopped, saved at step 1. Carry it on with `luthier resume first`.")
    output, _ = follower.communicate(timeout=60)
    assert "step 1/3" in output
    assert "Carry on with: luthier resume first" in (workplace / "runs/first/log/console.txt").read_text()
    again = luthier("stop", "first")
    assert again.returncode == 2
    assert "not running (stopped)" in again.stderr

    resumed = luthier("runs", "resume", "first", "--detach")
    assert resumed.returncode == 0, resumed.stderr
    reader = RunReader(RunFolder(workplace / "runs" / "first"))
    wait_for(lambda: reader.status().state == "done")
    assert [record["step"] for record in reader.metrics()] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in (workplace / "runs").iterdir()] == ["first"]  # nothing temporary is left


def test_a_detached_run_that_fails_says_why_in_the_foreground(workplace: Path, luthier: Luthier) -> None:
    done = luthier("train", "r.yaml", "--name", "first", "--detach", FAKE="mistake")
    assert done.returncode == 2
    assert done.stderr == "error: alpaca.json:7: row has no `output`\n"
    assert luthier("train", "r.yaml", "--name", "first").returncode == 0  # mended; the name is free again
    taken = luthier("train", "r.yaml", "--name", "first", "--detach")
    assert taken.returncode == 2
    assert "already there" in taken.stderr


def test_a_signal_in_the_foreground_is_3(workplace: Path, started: Start) -> None:
    process = started("train", "r.yaml", "--name", "first", FAKE="long")
    folder = RunFolder(workplace / "runs" / "first")
    wait_for(lambda: folder.metrics.is_file() and bool(RunReader(folder).metrics()))
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 3
    assert error == "Stopped after step 1 and saved. Carry on with: luthier resume first\n"


def test_ranks_share_a_run_and_rank_0_has_the_terminal(workplace: Path, luthier: Luthier) -> None:
    done = luthier("train", "r.yaml", "--nproc", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("run r-1 done")
    assert "rank" not in done.stdout
    assert (workplace / "runs/r-1/log/rank-1.txt").read_text() == "rank 1 of 2\n"


def test_a_mistake_on_rank_0_is_one_line_and_ends_the_others(workplace: Path, luthier: Luthier) -> None:
    done = luthier("train", "r.yaml", "--nproc", "2", FAKE="mistake")
    assert done.returncode == 2
    assert done.stderr == "error: alpaca.json:7: row has no `output`\n"


@pytest.mark.slow
def test_another_rank_that_fails_alone_is_heard(workplace: Path, luthier: Luthier) -> None:
    done = luthier("train", "r.yaml", "--nproc", "2", FAKE="other rank")
    assert done.returncode == 7
    assert "out of memory\n" in done.stderr


@pytest.mark.slow
def test_ranks_are_stopped_by_signal_and_by_command(workplace: Path, luthier: Luthier, started: Start) -> None:
    folder = RunFolder(workplace / "runs" / "first")
    process = started("train", "r.yaml", "--name", "first", "--nproc", "2", FAKE="long")
    wait_for(lambda: folder.metrics.is_file() and bool(RunReader(folder).metrics()))
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error.count("\n")) == (3, 1)

    process = started("resume", "first", "--nproc", "2", FAKE="long")
    wait_for(lambda: (status := RunReader(folder).status()).attempt == 2 and status.state == "running" and status.step == 2)
    assert luthier("stop", "first").returncode == 0
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert json.loads(folder.status.read_text())["state"] == "stopped"
