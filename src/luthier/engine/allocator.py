"""Keep freed memory for the next step.

glibc hands large blocks back to the kernel as soon as they are freed and asks for them again a moment later, each time as zeroed pages
that have to be faulted in. A training step on a CPU frees and takes the same tensors thousands of times; keeping them saved 4 to 10 %
of a step (`benchmarks/LOG.md`). The peak of memory stays what it is: only the moments between the peaks hold more.
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
