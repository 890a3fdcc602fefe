"""The one writer of a run folder.

It holds the run's lock for as long as it lives, so that two processes never write one run, and keeps `status.json` fresh from a
small thread: progress is noted in memory at every step and reaches the disk with the next heartbeat, so that a run of a hundred
steps a second does not flush a file a hundred times a second. Changes of state are written at once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Literal, Self

from luthier import files
from luthier.errors import Stopped, UserError
from luthier.runs import process
from luthier.runs.folder import STATUS_VERSION, RunFolder, read_status
from luthier.runs.jsonl import JsonLines, finite

State = Literal["preparing", "running", "done", "stopped", "failed"]
HEARTBEAT = 2.0
"""Seconds between two heartbeats in `status.json`."""


class RunWriter:
    """Writes status, events, metrics, samples and the log of one attempt at a run.

    Used as a context manager it also notes how the attempt ended, should the caller not have done so: `stopped` when a `Stopped`
    or a `KeyboardInterrupt` passes through, `failed` for any other exception. A resume that is refused or interrupted before training
    began leaves the status as the last attempt left it.

    Args:
        folder: the run folder, which must exist.
        attempt: number of this attempt; by default one more than the last.
        heartbeat: seconds between two heartbeats.

    Raises:
        UserError: another process writes this run.
    """

    def __init__(self, folder: RunFolder, attempt: int | None = None, *, heartbeat: float = HEARTBEAT) -> None:
        self.folder = folder
        self._closing = ExitStack()
        self._hold_lock()
        files.remove_leftovers(folder.path)
        self._before = self._earlier_status()
        self.attempt: int = attempt or int(self._before.get("attempt", 0)) + 1
        self._guard = threading.RLock()
        kept = {key: value for key, value in self._before.items() if key not in ("message", "ended")}
        self._status: dict[str, Any] = {"started": time.time()} | kept | self._identity() | {"state": "preparing"}
        self._events, self._metrics, self._samples = (
            self._open(JsonLines(path)) for path in (folder.events, folder.metrics, folder.samples)
        )
        folder.log().parent.mkdir(exist_ok=True)
        self._log = self._closing.enter_context(folder.log().open("a", encoding="utf-8", buffering=1, errors="replace"))
        self._write_status()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(heartbeat,), name="luthier-heartbeat", daemon=True)
        self._thread.start()

    def _hold_lock(self) -> None:
        try:
            self._closing.enter_context(files.lock(self.folder.lock, wait=False))
        except files.Locked:
            name = self.folder.reference
            hint = f"Follow it with `luthier logs {name} -f`, or end it with `luthier stop {name}`."
            raise UserError(f"run `{self.folder.name}` is already running", where=str(self.folder.path), hint=hint) from None

    def _earlier_status(self) -> dict[str, Any]:
        """What the last attempt left."""
        try:
            return read_status(self.folder)
        except FileNotFoundError:
            return {}
        except UserError:
            self._closing.close()
            raise

    def _identity(self) -> dict[str, Any]:
        return {
            "version": STATUS_VERSION,
            "name": self.folder.name,
            "attempt": self.attempt,
            "pid": os.getpid(),
            "pid_started": process.started(),
            "host": process.host(),
        }

    def _open(self, lines: JsonLines) -> JsonLines:
        self._closing.callback(lines.close)
        return lines

    @property
    def state(self) -> str:
        """The state last written."""
        return str(self._status["state"])

    def status(self, state: State, **fields: Any) -> None:
        """Change the state, and any further fields of `status.json`, at once."""
        with self._guard:
            self._status |= fields | {"state": state}
            if state in ("done", "stopped", "failed"):
                self._status["ended"] = time.time()
            self._write_status()

    def progress(self, **fields: Any) -> None:
        """Note fields of `status.json`; they reach the disk with the next heartbeat."""
        with self._guard:
            self._status |= fields

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to `events.jsonl`: `kind`, and what there is to say about it."""
        self._append(self._events, {"kind": kind, **fields})

    def metric(self, step: int, **values: Any) -> None:
        """Append one line to `metrics.jsonl`: the values after `step`."""
        self._append(self._metrics, {"step": step, **values})

    def sample(self, step: int, prompt: str, answer: str, rewards: Mapping[str, float] | None = None) -> None:
        """Append one line to `samples.jsonl`; `rewards` are those of an answer that is learnt from."""
        earned = {"rewards": dict(rewards)} if rewards else {}
        self._append(self._samples, {"step": step, "prompt": prompt, "answer": answer, **earned})

    def log(self, text: str) -> None:
        """Append `text` to `log/rank-0.txt`, each line with the time of day."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with self._guard:
            self._log.writelines(f"{stamp}  {line}\n" for line in text.splitlines())

    def _append(self, lines: JsonLines, record: dict[str, Any]) -> None:
        with self._guard:
            lines.append({"attempt": self.attempt, "time": round(time.time(), 3), **record})

    def _write_status(self) -> None:
        self._status["heartbeat"] = round(time.time(), 3)
        files.write_json(self.folder.status, finite(self._status))

    def _beat(self, interval: float) -> None:
        while not self._stop.wait(interval):
            # A disk that is full now may have room at the next beat; the training thread meets the same error and reports it.
            with self._guard, suppress(OSError):
                self._write_status()

    def close(self) -> None:
        """End the heartbeat, write the status a last time, flush everything and free the lock."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        with self._closing:
            self._write_status()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self.state in ("preparing", "running"):
            with suppress(OSError):  # the error under way says more than a full disk that keeps us from noting it
                self._note_failure(error)
        self.close()

    def _note_failure(self, error: BaseException) -> None:
        with self._guard:
            if self._before and self.state == "preparing" and isinstance(error, UserError | KeyboardInterrupt):
                self._status = self._before
                self._write_status()
            elif isinstance(error, KeyboardInterrupt):
                self.status("stopped", message="interrupted before it could save")
            else:
                self.status("stopped" if isinstance(error, Stopped) else "failed", message=str(error) or type(error).__name__)
