r"""Several rewards as one: a weighted sum, with every bad value counted and named.

    r(answer) = Σ_k w_k r_k(answer)

A value is bad if it is no finite number, if the reward raised, or if it gave another count of values than there were answers.
What becomes of it is each reward's `on_bad`: `zero` leaves its term out of the sum, `skip` takes no gradient from that answer,
`stop` ends the run. Either way it is told with the reward's name, the prompt's `file:line` and the reason.

Rewards that wait for something outside (a process, a server) run in threads beside the others, which compute here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from luthier.errors import UserError
from luthier.objectives.rewards.base import Answer, Bad, Reward


@dataclass(frozen=True, slots=True)
class Part:
    """One reward of the sum.

    Args:
        name: what it is called in reports; each name once.
        reward: gives the values.
        weight: its factor.
        on_bad: what becomes of a bad value.
        waits: it waits more than it computes, and may be called from a thread.
    """

    name: str
    reward: Reward
    weight: float = 1.0
    on_bad: Literal["zero", "skip", "stop"] = "skip"
    waits: bool = False


@dataclass(frozen=True, slots=True)
class BadValue:
    """One bad value: of which reward, at which prompt, and why."""

    name: str
    origin: str
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all rewards say of a rollout.

    Args:
        total: the weighted sum for each answer; 0 where the answer is not usable.
        usable: whether an answer may be learnt from.
        components: for each reward the values before their weight, NaN where they are bad.
        bad: every bad value.
    """

    total: list[float]
    usable: list[bool]
    components: Mapping[str, list[float]]
    bad: tuple[BadValue, ...] = ()

    def means(self) -> dict[str, float]:
        """The mean of each reward over its values that are not bad; a reward without any is left out."""
        good = {name: [value for value in values if not math.isnan(value)] for name, values in self.components.items()}
        return {name: sum(values) / len(values) for name, values in good.items() if values}

    def lines(self) -> list[str]:
        """A line for each reward that had bad values: how many, and where and why it was for the first time."""
        counts = Counter(bad.name for bad in self.bad)
        first = {bad.name: bad for bad in reversed(self.bad)}
        return [
            f"reward `{name}`: {count:,} of {len(self.total):,} bad, first at {first[name].origin or '?'}: {first[name].why}"
            for name, count in counts.items()
        ]


class Judge:
    """All rewards of a stage.

    Args:
        parts: at least one.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)

    def __call__(self, answers: Sequence[Answer]) -> Verdict:
        """What the rewards say of these answers.

        Raises:
            UserError: a value is bad, and `on_bad` of its reward is `stop`.
        """
        values = self._values(answers)
        total, usable = [0.0] * len(answers), [True] * len(answers)
        components: dict[str, list[float]] = {}
        bad: list[BadValue] = []
        for part in self.parts:
            components[part.name] = [math.nan if isinstance(value, Bad) else value for value in values[part.name]]
            for i, value in enumerate(values[part.name]):
                if isinstance(value, Bad):
                    bad.append(BadValue(part.name, answers[i].origin, value.why))
                    usable[i] = usable[i] and part.on_bad == "zero"
                    if part.on_bad == "stop":
                        hint = "Mend it, or set `on_bad: skip` to leave such answers out."
                        raise UserError(f"reward `{part.name}`: {value.why}", where=answers[i].origin or None, hint=hint)
                else:
                    total[i] += part.weight * value
        total = [value if good else 0.0 for value, good in zip(total, usable, strict=True)]
        return Verdict(total, usable, components, tuple(bad))

    def _values(self, answers: Sequence[Answer]) -> dict[str, list[float | Bad]]:
        """The values of each reward: those that wait begin first, the others compute meanwhile."""
        waiting = [part for part in self.parts if part.waits]
        with ThreadPoolExecutor(max(1, len(waiting)), "reward") as pool:
            later = {part.name: pool.submit(_asked, part.reward, answers) for part in waiting}
            now = {part.name: _asked(part.reward, answers) for part in self.parts if not part.waits}
            return now | {name: future.result() for name, future in later.items()}


def _asked(reward: Reward, answers: Sequence[Answer]) -> list[float | Bad]:
    """One value or `Bad` for each answer, whatever the reward does.

    Raises:
        UserError: the reward says that something is wrong with its settings.
    """
    if not answers:
        return []
    try:
        given: Sequence[Any] = reward(answers)
    except UserError:
        raise
    except Exception as error:  # a reward that fails is bad, and training goes on
        said = (str(error).strip().splitlines() or [""])[0][:200]
        return [Bad(f"{type(error).__name__}: {said}" if said else type(error).__name__)] * len(answers)
    if len(given) != len(answers):
        return [Bad(f"gives {len(given)} values for {len(answers)} answers")] * len(answers)
    return [_number(value) for value in given]


def _number(value: Any) -> float | Bad:
    """A finite number, or why it is none. Numbers of numpy and torch count, texts do not."""
    if isinstance(value, Bad):
        return value
    if value is None:
        return Bad("gives None")
    if isinstance(value, str | bytes):
        return Bad("gives a text, not a number")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return Bad(f"gives a {type(value).__name__}, not a number")
    return number if math.isfinite(number) else Bad(f"gives {number}")
