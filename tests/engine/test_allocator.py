"""Freed memory is kept for the next step, unless the user has set malloc's own variables."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from luthier.engine.allocator import keep_freed_memory

STEPS = """
import resource, sys, torch
from luthier.engine.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
layers = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(4)])
def step():
    torch.nn.functional.silu(layers(torch.ones(8192, 256))).sum().backward()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_steps_take_the_memory_of_earlier_ones() -> None:
    faults = {
        choice: int(subprocess.run([sys.executable, "-c", STEPS, choice], capture_output=True, text=True, check=True).stdout)
        for choice in ("keep", "return")
    }
    assert faults["keep"] < 0.8 * faults["return"], faults


def test_settings_of_the_user_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
