"""Commands as a user runs them: a process, a working directory, and a workshop that is played by a few lines of Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

WORKSHOP = '''
"""Stands in for luthier.workshop: the run folder is real, the training is a loop that sleeps. FAKE says how it goes."""
import os, signal, sys, time, types

def train(recipe, *, overrides=(), name=None, callbacks=(), progress=True):
    from luthier.recipe.load import load_recipe
    from luthier.runs.folder import create_run, free_name
    resolved = load_recipe(recipe, overrides)
    if os.environ.get("RANK", "0") != "0":
        return other_rank()
    chosen = name or resolved.name or free_name(resolved.output, "recipe")
    return go(create_run(resolved.output, chosen), 1, resolved.train.max_steps or 3, callbacks)

def resume(run, *, overrides=(), callbacks=(), progress=True):
    from luthier.runs.folder import find_run
    if os.environ.get("RANK", "0") != "0":
        return other_rank()
    folder = find_run(run)
    return go(folder, max(folder.checkpoints(), default=0) + 1, 6, callbacks)

def other_rank():
    print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"])
    if os.environ.get("FAKE") == "other rank":
        time.sleep(0.5)
        print("out of memory", file=sys.stderr)
        raise SystemExit(7)
    if os.environ.get("FAKE") in ("mistake", "bug"):
        time.sleep(60)

def go(folder, first, last, callbacks):
    from luthier.errors import Stopped, UserError
    from luthier.runs.callback import FolderCallback
    from luthier.runs.records import StartInfo, StepRecord
    from luthier.runs.writer import RunWriter
    asked = []
    fake = os.environ.get("FAKE", "")
    with RunWriter(folder, heartbeat=0.05) as writer:
        if fake == "mistake":
            raise UserError("row has no `output`", where="alpaca.json:7")
        if fake == "bug":
            raise ZeroDivisionError("a bug")
        watchers = [FolderCallback(writer), *callbacks]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: asked.append(1))
        for watcher in watchers:
            watcher.on_start(StartInfo(folder.name, folder.path, last, 3.0, first, writer.attempt))
        step = first
        while step <= last:
            for watcher in watchers:
                watcher.on_step(StepRecord(step, step / 3, 1 / step, 1e-4, 1.0, 10, 5, 0.1, 100.0))
            if fake in ("long", "other rank"):
                while not asked:
                    time.sleep(0.02)
            if asked:
                folder.checkpoint(step).mkdir(parents=True)
                writer.status("stopped", step=step)
                raise Stopped(f"Stopped after step {step} and saved. Carry on with: luthier resume {folder.name}")
            step += 1
        folder.checkpoint(last).mkdir(parents=True)
        writer.status("done", step=last)
        for watcher in watchers:
            watcher.on_end("done")

module = types.ModuleType("luthier.workshop")
module.train, module.resume = train, resume
sys.modules["luthier.workshop"] = module
'''


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe, in which commands meet the stand-in for the workshop."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "sitecustomize.py").write_text(WORKSHOP)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "r.yaml").write_text("model: tiny\ndata: {train: alpaca.json}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.delenv("FAKE", raising=False)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


Luthier = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def luthier() -> Luthier:
    """Run one command to its end."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "luthier", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=os.environ | environment, stdin=subprocess.DEVNULL
        )

    return run


@pytest.fixture
def started(workplace: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command and leave it running; whatever still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "luthier", *arguments]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | environment))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()
