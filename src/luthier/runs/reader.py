"""Reading a run folder while it is being written, or years later.

A run that was killed and resumed took some steps twice. Each attempt says in `events.jsonl` at which step it began (`start`
events), and every record carries the number of its attempt; a record is superseded, and left out here, when a later attempt began
at its step or before. What remains is the history of the weights that exist.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.runs import process
from luthier.runs.folder import RunFolder, read_status
from luthier.runs.jsonl import read

SILENCE = 60.0
"""Seconds without a heartbeat after which a run on another machine counts as lost."""


@dataclass(frozen=True, slots=True)
class Status:
    """What a run is doing.

    Args:
        state: `preparing`, `running`, `done`, `stopped`, `failed`, or `lost`: it says it runs, but its process is gone.
        attempt: number of the last attempt, from 1.
        step: the last step that was reported.
        total_steps: the step it ends at; None until that is known.
        pid: process number of the writer.
        pid_started: when that process started, seconds since 1970.
        host: the machine it runs on.
        heartbeat: when it last said so, seconds since 1970.
        fields: all of `status.json`.
    """

    state: str
    attempt: int
    step: int
    total_steps: int | None
    pid: int
    pid_started: float
    host: str
    heartbeat: float
    fields: dict[str, Any]

    @property
    def active(self) -> bool:
        """True while a process works on the run."""
        return self.state in ("preparing", "running")


class RunReader:
    """Reads one run folder; holds nothing open and takes no lock."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def status(self) -> Status:
        """The run's state as it is now, not as the last writer left it.

        Raises:
            FileNotFoundError: there is no status file.
            UserError: the run was made by a newer Luthier.
        """
        fields = read_status(self.folder)
        pid, pid_started, heartbeat = int(fields["pid"]), float(fields["pid_started"]), float(fields["heartbeat"])
        state = str(fields["state"])
        if state in ("preparing", "running") and not _lives(pid, pid_started, str(fields["host"]), heartbeat):
            state = "lost"
        total = fields.get("total_steps")
        return Status(
            state=state,
            attempt=int(fields["attempt"]),
            step=int(fields.get("step", 0)),
            total_steps=None if total is None else int(total),
            pid=pid,
            pid_started=pid_started,
            host=str(fields["host"]),
            heartbeat=heartbeat,
            fields=fields,
        )

    def metrics(self) -> list[dict[str, Any]]:
        """Steps (`loss`, …) and evaluations (`eval_loss`, …), in order, without superseded ones."""
        return self._current(self.folder.metrics)

    def samples(self) -> list[dict[str, Any]]:
        """Sample answers, in order, without superseded ones."""
        return self._current(self.folder.samples)

    def events(self) -> list[dict[str, Any]]:
        """What happened, in order, without superseded steps; events that belong to no step all stay."""
        return self._current(self.folder.events)

    def checkpoints(self) -> dict[int, Path]:
        """Checkpoints, step → folder, in order."""
        return self.folder.checkpoints()

    def _current(self, path: Path) -> list[dict[str, Any]]:
        starts = read(self.folder.events)[0]
        return without_superseded(read(path)[0], first_steps(starts))


def first_steps(events: Iterable[dict[str, Any]]) -> dict[int, int]:
    """Attempt → the first step it took, from the `start` events."""
    return {event["attempt"]: event["first_step"] for event in events if event.get("kind") == "start"}


def without_superseded(records: Iterable[dict[str, Any]], first: dict[int, int]) -> list[dict[str, Any]]:
    """The records that no later attempt took again.

    Args:
        records: with `attempt` and, if they belong to one, `step`.
        first: attempt → its first step.
    """
    bound: dict[int, float] = {}

    def first_later(attempt: int) -> float:
        if attempt not in bound:
            bound[attempt] = min((step for other, step in first.items() if other > attempt), default=float("inf"))
        return bound[attempt]

    return [record for record in records if record.get("step", -1) < first_later(record["attempt"])]


def _lives(pid: int, pid_started: float, host: str, heartbeat: float) -> bool:
    if host == process.host():
        return process.alive(pid, pid_started)
    return time.time() - heartbeat < SILENCE
