"""Models as the command line names them."""

from __future__ import annotations

import re
from pathlib import Path

_AT_STEP = re.compile(r"(.+)@(\d+)")


def split_step(name: str) -> tuple[str, int | None]:
    """Run and step of `RUN@STEP`; a name without a step, or that of a folder that is there, is what it is."""
    found = _AT_STEP.fullmatch(name)
    return (name, None) if found is None or Path(name).exists() else (found[1], int(found[2]))
