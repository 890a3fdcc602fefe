"""What a task is: it puts questions to one model, and gives measures, one row of what happened for each item, and notes.

A task never sees two models at once. Whoever compares runs it twice and pairs the items (`examination`); a judge, which
needs both answers, is asked afterwards (`judge`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from luthier.evaluation.examinee import Examinee
from luthier.evaluation.likelihood import Done
from luthier.evaluation.statistics import Measure

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Outcome:
    """One model on one task.

    Args:
        measures: what was found.
        items: of each item what happened, as plain data: question, answer, reference, ….
        notes: sentences for people.
        about: what the numbers are numbers of, as plain data: shots, rows, ….
    """

    measures: Sequence[Measure]
    items: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """What `tasks.build` makes of the settings of a task."""

    def examine(self, examinee: Examinee, progress: Progress) -> Outcome:
        """Put all questions to a model.

        Raises:
            UserError: its data cannot be read, or something is missing.
        """
        ...


def counting(progress: Progress, what: str) -> Done:
    """A progress that only has to say how much is done."""
    return lambda done, total: progress(what, done, total)
