"""What is measured while training, and what is kept of the way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.sections.base import Positive, Section
from luthier.recipe.sections.tasks import Tasks


class Samples(Section):
    """Answers to fixed prompts, so that one can read the progress."""

    every: Positive | None = None
    """Steps between sample answers; they are also taken before step 1. Default: as often as `evaluate.every`."""
    prompts: tuple[str, ...] = ()
    """Questions to answer."""
    max_new_tokens: Positive = 128
    """Longest answer in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the most likely token each time."""


class Evaluate(Section):
    """What is measured while training."""

    every: Positive | None = None
    """Steps between evaluations, on `data.validation` and of `tasks`. They also happen at the end. Default: once an epoch."""
    tasks: Tasks = ()
    """Examinations beside the loss, as for `luthier evaluate`: `mmlu:data/mmlu`, or a mapping with `type` and options."""
    metric: str = "loss"
    """What decides which checkpoint is the best: `loss`, another number of the evaluation, or `TASK/MEASURE`, e.g. `mmlu/accuracy`."""
    patience: Positive | None = None
    """Stop after this many evaluations without a better one (early stopping)."""
    samples: Samples = Samples()
    """Sample answers during training."""


class Checkpoint(Section):
    """What is kept of the way."""

    every: Positive | None = None
    """Steps between checkpoints. Default: once an epoch. One is always written at the end."""
    keep: Positive = 2
    """Keep the last n; the best by `evaluate.metric` is kept besides."""


Report = Literal["tensorboard", "wandb", "mlflow", "swanlab"]
