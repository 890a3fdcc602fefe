"""What every side of the benchmark is measured with, inside its own process and the same for all.

A side is a script beside this one, `with_<name>.py TASK.json`: it builds one training run from the task in its own library's ordinary
way and calls it under a `Meter`. The meter needs nothing but torch, and looks where all libraries must pass:

- `torch.nn.Embedding.forward` over the model's vocabulary, with gradients on: ids that are not padding are the *real tokens* of a step,
  all ids the *computed* ones; the first such call is the start of step 1. (Probes and validation run without gradients.)
- the post hook of every `torch.optim.Optimizer`: an optimizer step is over; process CPU time and wall time are noted.

Losses are given by each script, as its library reports them. The report is one JSON file, written again after each step, so that a run
that dies still says how far it came.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VOCABULARY, PAD = 8192, 0


@dataclass(frozen=True)
class Task:
    """One run to be made.

    Attributes:
        method: `lora` (rank 8, alpha 16, every linear layer) or `full`.
        precision: `fp32` or `bf16`.
        setting: `best` or `default`.
        model: folder of the model and its tokenizer.
        data: alpaca rows in the order in which they are to be learnt.
        folder: empty folder for whatever the run writes.
        report: where the measurements go.
        launched: `time.time()` just before the process was started.
        only_start: end the process after step 1.
        examples: examples in an optimizer step.
        max_length: longest sequence.
        pack_length, packs: for sides that pack: length and number of packs in an optimizer step, about as many tokens as `examples`.
        learning_rate: constant, without warm-up; no weight decay, no clipping (litgpt has none); small, so that
            adapters, which each side draws for itself, do not part the losses.
        rank, alpha: of the adapters.
    """

    method: str
    precision: str
    setting: str
    model: str
    data: str
    folder: str
    report: str
    launched: float
    only_start: bool = False
    examples: int = 8
    max_length: int = 512
    pack_length: int = 512
    packs: int = 3
    learning_rate: float = 2e-5
    rank: int = 8
    alpha: int = 16

    @property
    def best(self) -> bool:
        """The fastest known setting is asked for, not the library's defaults."""
        return self.setting == "best"

    def rows(self) -> list[dict[str, str]]:
        """The rows: `instruction` and `output`."""
        return json.loads(Path(self.data).read_text(encoding="utf-8"))


@dataclass
class Report:
    """What was measured. Seconds count from the start of the process.

    Attributes:
        begin: CPU and wall seconds at the first training forward, None before it.
        steps: for each optimizer step, at its end: `cpu`, `wall`, and its `tokens` and `computed` tokens.
        losses: loss of each step as the library reports it.
    """

    begin: dict[str, float] | None = None
    steps: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class Meter:
    """Measures the training run that is made inside `with meter.measuring():`."""

    def __init__(self, task: Task) -> None:
        self.task, self.report = task, Report()
        self._tokens = self._computed = 0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Watch embeddings and optimizers while the block runs."""
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook

        forward = torch.nn.Embedding.forward

        def counted(module: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
            if module.num_embeddings == VOCABULARY and torch.is_grad_enabled():
                self._count(int((ids != PAD).sum()), ids.numel())
            return forward(module, ids)

        torch.nn.Embedding.forward = counted  # type: ignore[method-assign]
        hook = register_optimizer_step_post_hook(lambda *_: self._stepped())
        try:
            yield
        finally:
            torch.nn.Embedding.forward = forward  # type: ignore[method-assign]
            hook.remove()
            self.write()

    def loss(self, value: float) -> None:
        """Note the loss of an optimizer step."""
        self.report.losses.append(float(value))

    def write(self) -> None:
        """Write down what is known so far."""
        Path(self.task.report).write_text(json.dumps(asdict(self.report)), encoding="utf-8")

    def _now(self) -> dict[str, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = time.process_time() + children.ru_utime + children.ru_stime
        return {"cpu": cpu, "wall": time.time() - self.task.launched}

    def _count(self, tokens: int, computed: int) -> None:
        if self.report.begin is None:
            self.report.begin = self._now()
        self._tokens += tokens
        self._computed += computed

    def _stepped(self) -> None:
        if not self._tokens:
            return
        self.report.steps.append({**self._now(), "tokens": self._tokens, "computed": self._computed})
        self._tokens = self._computed = 0
        self.write()
        if self.task.only_start:
            sys.stdout.flush()
            os._exit(0)


def main(train: Callable[[Task, Meter], Any], prepare: Callable[[Path], Any] | None = None) -> None:
    """Let `train` do the task named on the command line under the meter; after `--prepare`, let `prepare` convert the model folder."""
    if sys.argv[1] == "--prepare":
        if prepare:
            prepare(Path(sys.argv[2]))
        return
    task = Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    os.chdir(task.folder)
    meter = Meter(task)
    with meter.measuring():
        train(task, meter)


def losses_of_trainer(meter: Meter) -> None:
    """Take losses where transformers' Trainer logs them, before anyone rounds them."""
    from transformers import Trainer

    log = Trainer.log

    def noted(trainer: Trainer, logs: dict[str, float], *rest: Any) -> None:
        if "loss" in logs:
            meter.loss(logs["loss"])
        log(trainer, logs, *rest)

    Trainer.log = noted
