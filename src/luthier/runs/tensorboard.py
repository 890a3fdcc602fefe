"""TensorBoard event files in the run folder; `tensorboard --logdir runs` shows all runs side by side.

A resumed run goes back to its last checkpoint. The new event file says from which step on (`purge_step`), and TensorBoard drops
what earlier files held beyond it, so that its curves show the same history as `metrics.jsonl`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.runs.folder import RunFolder
from luthier.runs.records import Callback, EvaluationRecord, SampleRecord, StartInfo, StepRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardCallback(Callback):
    """Writes scalars under `train/` and `evaluate/`, and sample answers as text."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def on_start(self, info: StartInfo) -> None:
        """Open an event file; on resume it supersedes the steps from `first_step` on."""
        from torch.utils.tensorboard import SummaryWriter

        purge = info.first_step if info.attempt > 1 else None
        self._writer = SummaryWriter(str(RunFolder(info.folder).tensorboard), purge_step=purge)

    def on_step(self, step: StepRecord) -> None:
        """The numbers of one step."""
        self._scalars(
            "train",
            step.step,
            loss=step.loss,
            learning_rate=step.learning_rate,
            grad_norm=step.grad_norm,
            tokens_per_second=step.tokens_per_second,
            epoch=step.epoch,
            **step.extra,
        )

    def on_evaluate(self, record: EvaluationRecord) -> None:
        """The numbers of one evaluation."""
        self._scalars("evaluate", record.step, **record.values())

    def on_sample(self, record: SampleRecord) -> None:
        """One answer as text."""
        if self._writer:
            self._writer.add_text(f"samples/{record.prompt}", record.answer, record.step)

    def on_end(self, state: str) -> None:
        """Flush and close."""
        if self._writer:
            self._writer.close()
            self._writer = None

    def _scalars(self, group: str, step: int, **values: float) -> None:
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
