"""The callback that keeps a run: everything the engine reports goes into the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.runs import lines
from luthier.runs.records import Callback, EvaluationRecord, SampleRecord, StartInfo, StepRecord
from luthier.runs.writer import RunWriter


class FolderCallback(Callback):
    """Writes metrics, samples, events, progress and the plain log through a `RunWriter`.

    The state of the run (`running`, `done`, …) is written by whoever holds the writer, which also knows why a run ended.
    """

    def __init__(self, writer: RunWriter) -> None:
        self.writer = writer
        self._pace: lines.Pace | None = None

    def on_start(self, info: StartInfo) -> None:
        """Note from which step on earlier attempts are superseded."""
        self.writer.event("start", first_step=info.first_step, total_steps=info.total_steps, steps_per_epoch=info.steps_per_epoch)
        self.writer.status(
            "running", step=info.first_step - 1, total_steps=info.total_steps, steps_per_epoch=info.steps_per_epoch
        )
        self._pace = lines.Pace(info)
        self.writer.log(lines.start(info))

    def on_step(self, step: StepRecord) -> None:
        """One line of metrics, and one of the log."""
        values = {
            "epoch": round(step.epoch, 6),
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "grad_norm": step.grad_norm,
            "tokens": step.tokens,
            "supervised_tokens": step.supervised_tokens,
            "seconds": round(step.seconds, 6),
            "tokens_per_second": round(step.tokens_per_second, 3),
            "skipped": step.skipped,
        }
        self.writer.metric(step.step, **values, **step.extra)
        self.writer.progress(step=step.step, epoch=values["epoch"], loss=step.loss, learning_rate=step.learning_rate)
        remaining = self._pace.remaining(step) if self._pace else None
        self.writer.progress(tokens_per_second=values["tokens_per_second"], seconds_left=remaining)
        self.writer.log(lines.step(step, self._pace.total if self._pace else None, remaining))

    def on_evaluate(self, record: EvaluationRecord) -> None:
        """One line of metrics under `eval_` names."""
        self.writer.metric(record.step, **{f"eval_{name}": value for name, value in record.values().items()}, best=record.best)
        if record.loss is not None:
            self.writer.progress(eval_loss=record.loss)
        if record.best:
            self.writer.progress(best_step=record.step, best_by=record.by, best_value=record.decisive)
            if record.by == "loss":
                self.writer.progress(best_eval_loss=record.loss)
        self.writer.log(lines.evaluation(record))

    def on_sample(self, record: SampleRecord) -> None:
        """One sample answer."""
        self.writer.sample(record.step, record.prompt, record.answer, record.rewards)
        self.writer.log(lines.sample(record))

    def on_save(self, step: int, folder: Path) -> None:
        """A `save` event with the checkpoint's folder, relative to the run's."""
        place = folder.relative_to(self.writer.folder.path) if folder.is_relative_to(self.writer.folder.path) else folder
        self.writer.event("save", step=step, folder=str(place))
        self.writer.progress(checkpoint=step)
        self.writer.log(f"saved {place}")

    def on_prepare(self, what: str, done: int, total: int) -> None:
        """Progress in the status."""
        self.writer.progress(preparing=what, prepared=done / total if total else None)

    def on_note(self, text: str, shown: Any = None) -> None:
        """A `note` event."""
        self.writer.event("note", text=text)
        self.writer.log(text)

    def on_end(self, state: str) -> None:
        """An `end` event."""
        self.writer.event("end", state=state)
        self.writer.log(f"{state}")
