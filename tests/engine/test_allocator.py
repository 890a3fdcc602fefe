"""Freed memory is kept for the next step, unless the user has set malloc's own variables."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from luthier.engine.allocator import keep_freed_memory

BLOCKS = """
import ctypes, resource, sys
from luthier.engine.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
SIZE = 64 << 20
def use():
    block = libc.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    libc.free(block)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
before = faults()
for _ in range(4):
    use()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_block_takes_the_memory_of_the_one_freed_before() -> None:
    faults = {
        choice: int(subprocess.run([sys.executable, "-c", BLOCKS, choice], capture_output=True, text=True, check=True).stdout)
        for choice in ("keep", "return")
    }
    assert faults["keep"] < 1000, faults
    assert faults["return"] > 10_000, faults


def test_settings_of_the_user_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
