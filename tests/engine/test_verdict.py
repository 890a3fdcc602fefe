"""The verdict's yardstick: what this machine's matrix product reaches."""

from __future__ import annotations

import time

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
