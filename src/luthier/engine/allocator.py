"""Keep freed memory for the next step.

glibc hands large blocks back to the kernel as soon as they are freed and asks for them again a moment later, each time as zeroed pages
that have to be faulted in. A training step on a CPU frees and takes the same tensors thousands of times; keeping them saves 2 to
5 % of a step in the kernel alone (`benchmarks/LOG.md`). Between its peaks the process holds on to memory that it does not use.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Names of the settings in <malloc.h>."""


def keep_freed_memory() -> bool:
    """Tell glibc so, for this process; True if it listened. Whoever has set malloc's own variables is left alone."""
    if not sys.platform.startswith("linux") or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(tune and tune(_MMAP_MAX, 0) and tune(_TRIM_THRESHOLD, 2**31 - 1))
