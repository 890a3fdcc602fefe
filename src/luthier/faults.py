"""Named fault points: places where a test can make the process die, to prove that nothing is lost there.

A fault point is one call, `faults.point("checkpoint.before-rename")`. It does nothing unless the environment variable
`LUTHIER_FAULT` names it: `LUTHIER_FAULT=checkpoint.before-rename` kills the process (SIGKILL, no clean-up, as a power
cut would) the first time it is reached, `…:3` the third time. `LUTHIER_FAULT=…:1:ENOSPC` raises that `OSError` instead.
"""

from __future__ import annotations

import errno
import os
import signal

POINTS = {
    "checkpoint.mid-write": "some files of a checkpoint are written, others not",
    "checkpoint.before-manifest": "all files are written, the manifest is not",
    "checkpoint.before-rename": "the folder is complete under its temporary name",
    "checkpoint.mid-rotation": "an old checkpoint is set aside, but not yet deleted",
    "store.mid-write": "some columns of a token store are written",
    "store.before-rename": "the token store is complete under its temporary name",
    "loop.step": "between two optimizer steps",
}
"""Every fault point, and the state of the disk there."""

_reached: dict[str, int] = {}


def point(name: str) -> None:
    """Die here if the environment asks for it.

    Raises:
        KeyError: the name is not in `POINTS`.
        OSError: an error number was asked for in place of a kill.
    """
    POINTS[name]
    armed = os.environ.get("LUTHIER_FAULT")
    if not armed:
        return
    wanted, _, rest = armed.partition(":")
    if wanted != name:
        return
    count, _, error = rest.partition(":")
    _reached[name] = _reached.get(name, 0) + 1
    if _reached[name] != int(count or 1):
        return
    if error:
        number = getattr(errno, error)
        raise OSError(number, os.strerror(number))
    os.kill(os.getpid(), signal.SIGKILL)
