"""Runs seen from the command line, from their folders alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli.app import run
from luthier.cli.runs import tail
from luthier.runs.callback import FolderCallback
from luthier.runs.folder import create_run
from luthier.runs.records import EvaluationRecord, SampleRecord, StartInfo, StepRecord
from luthier.runs.writer import RunWriter


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One finished run, one that was killed, one folder of something else."""
    monkeypatch.chdir(tmp_path)
    for name, state in (("第一次", "done"), ("second", "running")):
        folder = create_run("runs", name)
        with RunWriter(folder) as writer:
            callback = FolderCallback(writer)
            callback.on_start(StartInfo(name, folder.path, 3, 3.0))
            callback.on_sample(SampleRecord(0, "你是谁？", "不知道"))
            for step in range(1, 4):
                callback.on_step(StepRecord(step, step / 3, 3.0 - step / 2, 1e-4, 1.0, 10, 5, 0.1, 100.0))
            callback.on_evaluate(EvaluationRecord(3, 1.25, 3.5, 0.5, best=True))
            callback.on_sample(SampleRecord(3, "你是谁？", "我是黄大力的智能助手。"))
            folder.checkpoint(3).mkdir()
            writer.status(state)  # type: ignore[arg-type]
        if state == "running":
            fields = json.loads(folder.status.read_text()) | {"pid": 2**22 + 1}
            folder.status.write_text(json.dumps(fields))
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", "list"]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "STATE", "STEP", "LOSS", "VALIDATION", "STARTED"]
    assert first.split()[:5] == ["第一次", "done", "3/3", "1.5000", "1.2500"]
    assert second.split()[:2] == ["second", "lost"]
    assert second.index("lost") == first.index("done") + 3  # three wide characters take six cells


def test_list_as_json_with_a_run_that_cannot_be_read(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "second" / "status.json").write_text("{")
    assert run(["runs", "list", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["第一次"]["total_steps"] == 3
    assert entries["second"]["state"] == "unreadable"


@pytest.mark.parametrize("command", [["show"], ["runs", "show"]])
def test_show(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "第一次"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("run 第一次: done, step 3/3, attempt 1\n")
    for part in (
        "2.5000 █▅▁ 1.5000",
        "1.2500, best 1.2500 at step 3",
        "checkpoints  3",
        "我是黄大力的智能助手。",
        "luthier chat 第一次",
    ):
        assert part in text
    assert "不知道" not in text
    assert run([*command, "runs/second"]) == 0
    assert "luthier resume runs/second" in capsys.readouterr().out


def test_show_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "第一次", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["checkpoints"], shown["last"][0]["eval_loss"], shown["samples"][0]["step"]) == ([3], 1.25, 3)


def test_logs(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(["logs", "第一次"]) == 0
    everything = capfdbinary.readouterr().out
    assert everything.count(b"\n") == len(everything.splitlines()) > 5
    assert run(["logs", "第一次", "-n", "2"]) == 0
    assert capfdbinary.readouterr().out == b"".join(everything.splitlines(keepends=True)[-2:])
    assert run(["runs", "logs", "第一次", "-n", "0"]) == 0
    assert capfdbinary.readouterr().out == b""


def test_following_a_lost_run_ends_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logs", "second", "-f"]) == 0
    assert "luthier resume second" in capsys.readouterr().err


def test_a_run_that_is_over_cannot_be_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stop", "second"]) == 2
    assert capsys.readouterr().err.startswith("error: run `second` is not running (lost)")


def test_a_tail_misses_nothing_that_was_written_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    written = iter([b"one\n", b"two\n", b"three\n"])

    def active() -> bool:
        """The process writes, then dies, between two looks."""
        text = next(written, None)
        if text is not None:
            with path.open("ab") as file:
                file.write(text)
        return text is not None and text != b"three\n"

    assert b"".join(tail(path, active)) == b"one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("stage", "hint"),
    [("sft", "luthier chat 第一次"), ("rm", "type: model, path: 第一次"), ("classify", "luthier classify 第一次")],
)
def test_show_says_what_can_be_done_with_what_came_out(
    runs: Path, capsys: pytest.CaptureFixture[str], stage: str, hint: str
) -> None:
    (runs / "第一次" / "recipe.yaml").write_text(f"stage: {{type: {stage}}}\n")
    assert run(["show", "第一次"]) == 0
    assert hint in capsys.readouterr().out
