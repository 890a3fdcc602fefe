"""The verdict's yardstick: what this machine's matrix product reaches."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from luthier.engine import verdict


@pytest.mark.parametrize("threads", [1, 2])
def test_a_cpu_is_measured_by_what_its_threads_compute(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Half a second of CPU time for each product, whatever the clock on the wall says; two threads share it."""
    spent = iter(range(100))
    monkeypatch.setattr(time, "process_time", lambda: next(spent) * 0.5)
    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("the clock on the wall was asked"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert verdict.peak_flops(torch.device("cpu"), torch.float32) == 2 * 1024**3 / (0.5 / threads)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone keeps a high-water mark for each program")
def test_the_peak_is_this_program_s_own() -> None:
    """A small program that a large one starts does not inherit its size."""
    ballast = bytearray(300 << 20)
    for place in range(0, len(ballast), 4096):
        ballast[place] = 1
    code = "import torch; from luthier.engine.verdict import peak_memory; print(peak_memory(torch.device('cpu')))"
    small = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert small < verdict.peak_memory(torch.device("cpu")) - len(ballast) // 2
