"""The state of a run between two steps: everything that the future depends on, and nothing else.

The order of the data and every random number are functions of (seed, step), so there is no generator state and no loader state to
keep: the step is the cursor. (A stream, which cannot be read from anywhere, adds where it stands: `StreamBatches.cursor`.) What is left
are the weights, the optimizer's tensors, and the few numbers below.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from luthier.data.hashing import mix64
from luthier.errors import UserError

VERSION = 2
LOSS_WINDOW = 10
"""Steps over which `stop_at_loss` averages."""


@dataclass
class TrainState:
    """Counters of a run, saved with every checkpoint.

    Attributes:
        step: optimizer steps taken; also the cursor in the data.
        skipped: steps that changed nothing because something was not finite.
        bad_in_a_row: how many of them the last steps were.
        tokens: tokens seen.
        supervised_tokens: of these, the ones with a loss weight.
        seconds: time spent in steps, over all attempts.
        best_by: what decides which evaluation is the best (`evaluate.metric`).
        best_value: the best of it so far.
        best_step: the step it was measured after.
        stale_evaluations: evaluations since then.
        recent: training losses of the last steps.
    """

    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    best_by: str = "loss"
    best_value: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0
    recent: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data with the version of this layout."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> TrainState:
        """Read what `to_json` wrote.

        Raises:
            UserError: it was written by another version.
        """
        if raw.get("version") != VERSION:
            raise UserError(
                f"the checkpoint's state has version {raw.get('version')}, this Luthier reads version {VERSION}",
                hint="Resume it with the Luthier that wrote it, or start a new run from its weights.",
            )
        return cls(**{key: value for key, value in raw.items() if key != "version"})


def reseed(purpose: int, *counters: int) -> None:
    """Start torch's generators afresh for one purpose at one place, e.g. dropout of (seed, step, micro-batch, rank)."""
    torch.manual_seed(int(mix64(purpose, *counters)) >> 1)


DROPOUT, ADAPTER = 1, 2
"""Purposes of randomness; each is a stream of its own."""


def fingerprint(device: torch.device) -> dict[str, Any]:
    """What bitwise equality depends on besides the state: versions, processor and number of threads."""
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
