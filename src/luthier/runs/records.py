"""What a run tells those who watch it: a few frozen records, and the base class of watchers.

`on_prepare` and `on_note` come at any time. The engine calls `on_start` once, then `on_step`, `on_evaluate`, `on_sample` and
`on_save` as things happen, and `on_end` once, all on rank 0 only. Everything that shows or keeps a run is such a callback: the run
folder, the terminal, TensorBoard, the plot, and whatever a user passes to `luthier.train(recipe, callbacks=[…])`:

```python
class Quit(Callback):
    def on_step(self, step: StepRecord) -> None:
        self.low = step.loss < 0.1

    def wants_stop(self) -> bool:
        return self.low
```

Records hold plain Python numbers. Steps are optimizer steps and count from 1; step 0 is the model before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class StartInfo:
    """What is known when training begins.

    Args:
        name: the run's name.
        folder: the run folder.
        total_steps: the step at which the run ends by itself.
        steps_per_epoch: optimizer steps in one pass over the data; may be fractional.
        first_step: the first step taken now: 1, or one after the checkpoint that is resumed.
        attempt: 1 for a new run, one more for each resume.
        recipe: the resolved recipe as plain data, for trackers.
    """

    name: str
    folder: Path
    total_steps: int
    steps_per_epoch: float
    first_step: int = 1
    attempt: int = 1
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step.

    Args:
        step: its number, from 1.
        epoch: passes over the data so far, this step included; fractional.
        loss: mean training loss of the global batch, by the objective's own denominator.
        learning_rate: the rate this step was taken with.
        grad_norm: global gradient norm before clipping.
        tokens: tokens of the global batch.
        supervised_tokens: those of them that the loss counts.
        seconds: wall time of the step.
        tokens_per_second: `tokens / seconds`, over all ranks.
        skipped: the loss or a gradient was not finite and the step changed nothing.
        extra: further numbers of the objective, by name (reward margins, a KL term, …).
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    seconds: float
    tokens_per_second: float
    skipped: bool = False
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One evaluation on the validation examples, and of the recipe's tasks.

    Args:
        step: the step it was taken after.
        loss: mean loss; per supervised token and in nats where it is a likelihood. None where there are tasks alone.
        perplexity: `exp(loss)` of a likelihood, else None.
        accuracy: share of supervised tokens that are the model's first choice, or of pairs that it orders rightly, 0…1; None where
            the objective tells none.
        best: this is the best of the run so far.
        sources: loss of each source by its name, where there are several.
        metrics: all that the objective tells, by name, accuracy included; and of each task `TASK/MEASURE`.
        by: what the best is chosen by: `evaluate.metric`.
    """

    step: int
    loss: float | None
    perplexity: float | None
    accuracy: float | None
    best: bool = False
    sources: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    by: str = "loss"

    @property
    def decisive(self) -> float | None:
        """The value that the best is chosen by."""
        return self.values().get(self.by)

    def values(self) -> dict[str, float]:
        """The numbers by name, for trackers."""
        named = {"loss": self.loss, "perplexity": self.perplexity, "accuracy": self.accuracy}
        told = {name: value for name, value in named.items() if value is not None} | dict(self.metrics)
        return told | {f"loss/{name}": loss for name, loss in self.sources.items()}


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One answer to one of the recipe's prompts; `step` 0 is before training.

    Args:
        step: optimizer steps taken.
        prompt: what was asked.
        answer: what the model said.
        rewards: of an answer that is learnt from, what each reward says of it, by name.
    """

    step: int
    prompt: str
    answer: str
    rewards: Mapping[str, float] = field(default_factory=dict)


class Callback:
    """A watcher of a run. Every method may be overridden; none does anything here."""

    def on_start(self, info: StartInfo) -> None:
        """Training begins (or begins again, on resume)."""

    def on_step(self, step: StepRecord) -> None:
        """An optimizer step is done. Called every `train.log_every` steps, one step late, so that no device waits for it."""

    def on_evaluate(self, record: EvaluationRecord) -> None:
        """The validation examples were measured."""

    def on_sample(self, record: SampleRecord) -> None:
        """A prompt of the recipe was answered."""

    def on_save(self, step: int, folder: Path) -> None:
        """A checkpoint is complete in `folder`."""

    def on_prepare(self, what: str, done: int, total: int) -> None:
        """Work before training: `done` of `total` units of `what` (rows tokenised, say). Called often."""

    def on_note(self, text: str, shown: Any = None) -> None:
        """Something worth a line for people: the data report, the first decoded row, the verdict.

        `shown` is the same for a terminal, where that differs: any rich renderable, such as text with colours.
        """

    def on_end(self, state: str) -> None:
        """It is over: `done`, `stopped` or `failed`. A run can fail before `on_start`."""

    def wants_stop(self) -> bool:
        """True asks the engine to save and end the run after the current step."""
        return False
