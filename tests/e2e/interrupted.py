"""What end-to-end tests of stages do with runs: interrupt them, and read their steps."""

from __future__ import annotations

import os
import signal
from typing import Any

import luthier
from luthier.runs.records import Callback, StepRecord


def steps(run: luthier.Run) -> list[dict[str, Any]]:
    return [record for record in run.metrics() if "loss" in record]


class StopAt(Callback):
    """Interrupts the run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: StepRecord) -> None:
        if step.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
