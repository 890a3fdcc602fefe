"""Which process a run belongs to, told apart from a later process with the same number.

A process id is reused by the system sooner or later; together with the moment the process started it is unique. psutil is
imported when it is needed, because reading a run folder should not cost its import.
"""

from __future__ import annotations

import os
import platform

TOLERANCE = 2.0
"""Seconds by which two readings of one start time may differ: it is derived from a boot time that clock corrections move."""


def host() -> str:
    """The name of this machine."""
    return platform.node()


def started(pid: int | None = None) -> float:
    """When a process (default: this one) started, in seconds since 1970.

    Raises:
        ProcessLookupError: there is no such process.
    """
    import psutil

    try:
        return float(psutil.Process(pid or os.getpid()).create_time())
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(f"no process {pid}") from error


def alive(pid: int, pid_started: float) -> bool:
    """True if the process `pid` of this machine runs and is the one that started at `pid_started`."""
    import psutil

    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - pid_started) < TOLERANCE and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
