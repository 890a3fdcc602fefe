"""Training in other processes: one in the background, or several ranks side by side.

Ranks are started by torchrun's own agent (`torch.distributed.launcher`), called from here and not as a command, because only so
the exit code of a rank (2 the user's mistake, 3 stopped and saved) comes back; the command turns each of them into 1 and a page
of text. The agent sits in the process that the user started: it passes signals on, and ends all ranks when one fails.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from luthier.errors import EXIT_BUG, EXIT_DONE, EXIT_STOPPED
from luthier.files import TEMPORARY
from luthier.runs.folder import RunFolder
from luthier.runs.reader import RunReader, Status

PATIENCE = 15.0
"""Seconds to watch a background run prepare its data before leaving it alone."""
SAVING = 600
"""Seconds that ranks get to save after a signal, before they are killed."""


def in_background(arguments: list[str], folder: RunFolder, place: Path | None = None) -> int:
    """Start `luthier ARGUMENTS` in a session of its own, and watch it until training has begun or it has failed.

    Its output goes to `log/console.txt` in the run folder. Returns 0 once it runs, or the exit code it failed with, after
    printing what it said.

    Args:
        arguments: of the command.
        folder: of the run that is watched.
        place: an existing folder for the output until then; default: the run's parent.
    """
    place = place or folder.path.parent
    place.mkdir(parents=True, exist_ok=True)
    said = place / f"{TEMPORARY}{folder.name}-{os.getpid()}.log"
    before = _attempt(folder)
    with said.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "luthier", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    code = _watch(process, folder, before)
    if code:
        print(said.read_text(errors="replace"), file=sys.stderr, end="")
        said.unlink()
        return code if code > 0 else EXIT_BUG
    folder.log().parent.mkdir(parents=True, exist_ok=True)
    said.rename(folder.log().with_name("console.txt"))
    print(f"run {folder.name} {_state(folder)} in the background (process {process.pid})")
    print(f"follow it:  luthier logs {folder.reference} -f")
    print(f"stop it:    luthier stop {folder.reference}")
    return EXIT_DONE


def _watch(process: subprocess.Popen[bytes], folder: RunFolder, before: int) -> int | None:
    """Wait until the run is under way or over; the exit code if the process has ended."""
    preparing_until: float | None = None
    while (code := process.poll()) is None:
        status = _status(folder)
        if status and status.attempt > before:
            if status.state == "running":
                return None
            preparing_until = preparing_until or time.monotonic() + PATIENCE
            if time.monotonic() > preparing_until:
                return None
        time.sleep(0.05)
    return code


def _status(folder: RunFolder) -> Status | None:
    return RunReader(folder).status() if folder.is_run() else None


def _attempt(folder: RunFolder) -> int:
    """The last attempt before this one; a folder without a checkpoint is made anew, and its attempts count from 1 again."""
    status = _status(folder)
    return status.attempt if status and folder.checkpoints() else 0


def _state(folder: RunFolder) -> str:
    status = _status(folder)
    return {"running": "runs", "preparing": "prepares its data"}.get(status.state, status.state) if status else "starts"


def on_ranks(arguments: list[str], count: int, folder: RunFolder) -> int:
    """Run `luthier ARGUMENTS` as `count` ranks of one process group; returns the exit code of the rank that ended it.

    Rank 0 has the terminal; what the others print is kept as `log/rank-N.txt` in the run folder.
    """
    logging.disable(logging.ERROR)  # the agent's own account of what the ranks say better
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVING))
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="luthier-ranks-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=dict.fromkeys(range(1, count), Std.ALL)),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "luthier", *arguments)
            return EXIT_DONE
        except ChildFailedError as error:
            return _exit_code(error.failures, Path(logs))
        except SignalException:
            status = _status(folder)
            return EXIT_STOPPED if status and status.state == "stopped" else EXIT_BUG
        finally:
            _keep_logs(Path(logs), folder)


def _exit_code(failures: Mapping[int, Any], logs: Path) -> int:
    """The code of the rank that failed first, after printing what it said unless it has the terminal.

    The agent notes failures as it finds them, so the first entry is the cause; the others were ended because of it.
    """
    rank = next(iter(failures))
    if rank:
        for path in logs.rglob(f"{rank}/stderr.log"):
            print(path.read_text(errors="replace"), file=sys.stderr, end="")
    code = int(failures[rank].exitcode)
    return code if code > 0 else EXIT_BUG


def _keep_logs(logs: Path, folder: RunFolder) -> None:
    """Move what the ranks but the first have printed into the run folder, if there is one and they said anything."""
    for path in sorted(logs.rglob("std*.log")):
        if folder.is_run() and path.stat().st_size:
            target = folder.log(int(path.parent.name))
            target.parent.mkdir(exist_ok=True)
            with path.open("rb") as source, target.open("ab") as sink:
                shutil.copyfileobj(source, sink)
