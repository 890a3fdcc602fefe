"""The watchers of a run, and the answers it gives on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.generation.chat import ChatModel
from luthier.recipe.schema import Recipe
from luthier.runs.callback import FolderCallback
from luthier.runs.console import ConsoleCallback
from luthier.runs.plot import PlotCallback
from luthier.runs.records import Callback, SampleRecord
from luthier.runs.tensorboard import TensorBoardCallback
from luthier.runs.trackers import trackers
from luthier.runs.writer import RunWriter


class Watchers:
    """All callbacks of a run as one.

    Args:
        callbacks: who watches.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.all = [*callbacks]

    @classmethod
    def of(cls, recipe: Recipe, callbacks: Sequence[Callback], *, progress: bool) -> Watchers:
        """The caller's own watchers, the terminal, and the trackers that the recipe reports to."""
        found = [*callbacks, *trackers([name for name in recipe.report_to if name != "tensorboard"])]
        if progress:
            found.append(ConsoleCallback())
        if "tensorboard" in recipe.report_to:
            found.append(TensorBoardCallback())
        return cls([*found, PlotCallback()])

    def keep(self, writer: RunWriter) -> None:
        """Write what happens into the run folder, before anyone else hears of it."""
        self.all.insert(0, FolderCallback(writer))

    def note(self, text: str, shown: Any = None) -> None:
        """Tell everyone something worth a line; `shown` is a coloured form for terminals."""
        for callback in self.all:
            callback.on_note(text, shown)

    def preparing(self, what: str, done: int, total: int) -> None:
        """Progress before the first step."""
        for callback in self.all:
            callback.on_prepare(what, done, total)

    def sampled(self, record: SampleRecord) -> None:
        """A prompt was answered."""
        for callback in self.all:
            callback.on_sample(record)

    def ended(self, state: str) -> None:
        """The run is over."""
        for callback in self.all:
            callback.on_end(state)


class Sampler:
    """Answers the recipe's prompts with the policy as it is."""

    def __init__(self, model: ChatModel, recipe: Recipe, watchers: Watchers) -> None:
        self.model, self.recipe, self.watchers = model, recipe, watchers

    def __call__(self, step: int) -> None:
        """Answer all prompts after `step` and tell the watchers."""
        samples = self.recipe.evaluate.samples
        answers = self.model.answers(
            samples.prompts,
            system=self.recipe.data.system,
            max_new_tokens=samples.max_new_tokens,
            temperature=samples.temperature,
            seed=self.recipe.train.seed,
        )
        for prompt, answer in zip(samples.prompts, answers, strict=True):
            self.watchers.sampled(SampleRecord(step, prompt, answer.text))
