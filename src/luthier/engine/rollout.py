r"""Rollouts: what reinforcement learns from, written by the policy itself.

    prompts ─▶ answers ─▶ rewards ─▶ what was expected ─▶ advantages ─▶ an in-memory TokenStore ─▶ mini-batches ─▶ steps
       ▲                                                                                                            │
       └──────────────────────────────── a rollout every `mini_batches · passes` steps ◀────────────────────────────┘

To the step loop a `Rollouts` is batches like any other: it says what a step learns from. The first step of a rollout draws prompts, has
the policy answer them as it is now (`luthier.generation.bulk`), asks the rewards, scores what has to be known before learning begins
(`estimates.py`), and lays prompts and answers end to end into a store, with advantages and the like as columns over its tokens. The token
ids are those that were sampled; no text is tokenised again. Where answers are learnt from in pairs (`pairs.py`), only those are laid down.

Which prompts, which answers and which mini-batch are functions of the seed and of a few counters, so a resumed run goes on bit for
bit: between two rollouts nothing else is kept, within one the store and its columns are saved with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.data.batch import Drawn, GlobalBatches
from luthier.data.hashing import mix64
from luthier.data.store import COLUMNS, TokenStore, memory_store
from luthier.data.units import Units
from luthier.engine.evaluate import Measured
from luthier.engine.judged import Judged, answer_of, as_store, report
from luthier.engine.pairs import PAIR, pair_store, paired
from luthier.engine.parallel import World
from luthier.generation.bulk import Written
from luthier.objectives.advantages import equal_groups
from luthier.objectives.rewards import Answer, Verdict
from luthier.recipe.schema import GRPO, PPO, OnlineDPO
from luthier.runs.records import SampleRecord

PREFIX = "rollout."
"""Before the names of a rollout's tensors in a checkpoint."""
_ORDER = 0x524F  # purpose of random numbers
_HELD_OUT = 1 << 48  # index of the first answer to held-out prompts that is drawn by chance; training never gets there

Reinforcement = GRPO | PPO | OnlineDPO
Columns = Mapping[str, NDArray[np.float32]]


class Writer(Protocol):
    """Whoever writes answers with the policy as it is now."""

    def __call__(self, prompts: Sequence[Sequence[int]], first: int) -> list[Written]:
        """The answers to each prompt, one after the other; `first` is the index of the first, which is its randomness."""


class Estimate(Protocol):
    """What turns judged answers into what the objective reads."""

    def __call__(self, judged: Judged, drawn: Drawn) -> tuple[Columns, dict[str, float]]:
        """Columns over the tokens of the store, and numbers to report."""

    def state(self) -> dict[str, float]:
        """What a resume needs of it."""

    def load(self, state: Mapping[str, float]) -> None:
        """Take up a state written by `state`."""


@dataclass
class Rollouts:
    """What every step of a reinforcement stage learns from.

    Args:
        prompts: which prompts each rollout answers.
        stage: the recipe's stage.
        seed: of mini-batches.
        writer: writes the answers that are learnt from.
        examined: writes one answer to each held-out prompt, the likeliest.
        judge: says what they are worth.
        estimate: makes columns of it.
        world: the processes; each answers its share of the prompts.
        rewards: what identifies the judge's rewards.
        held_out: measures answers to held-out prompts, as many to each as in training; None where the likeliest ones are enough.
        spare_idle: answers whose advantage is 0 are counted and not run; right where nothing but the advantage moves the policy.
        note: hears of bad rewards, and of changed ones.
        tell: hears of some answers.
    """

    prompts: GlobalBatches
    stage: Reinforcement
    seed: int
    writer: Writer
    examined: Writer
    judge: Callable[[Sequence[Answer]], Verdict]
    estimate: Estimate
    world: World
    rewards: str = ""
    held_out: Callable[[Judged], Mapping[str, float]] | None = None
    spare_idle: bool = False
    note: Callable[[str], None] = print
    tell: Callable[[SampleRecord], None] | None = None
    _drawn: int = 0  # how many times prompts were drawn
    _written: int = 0  # how many answers were written
    _number: int = -1  # of the rollout at hand
    _store: TokenStore | None = None
    _columns: Columns = field(default_factory=dict)
    _told: dict[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Optimizer steps that learn from one rollout."""
        return self.stage.mini_batches * self.stage.passes

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the prompts, as long as none are drawn in place of others."""
        return self.prompts.steps_per_epoch * self.steps

    @property
    def mixed(self) -> bool:
        """Whether the prompts come from several sources."""
        return self.prompts.mixed

    @property
    def _each(self) -> int:
        """Rows of the store that are learnt from together."""
        return PAIR if isinstance(self.stage, OnlineDPO) else 1

    def __call__(self, step: int) -> Drawn:
        """What global batch `step` learns from. Where a rollout begins, the policy writes it now."""
        number, place = divmod(step, self.steps)
        if number != self._number:
            self._number = number
            self._roll(step)
        assert self._store is not None
        count, each = len(self._store) // self._each, np.arange(self._each)
        turn, part = divmod(place, self.stage.mini_batches)
        order = np.argsort(mix64(self.seed, _ORDER, number, turn, np.arange(count, dtype=np.uint64)), kind="stable")
        parts = min(self.stage.mini_batches, count)
        units = np.sort(np.array_split(order, parts)[part % parts])
        run, idle = self._sorted_out(units)
        rows, groups = (run[:, None] * len(each) + each).ravel(), np.repeat(run << 32 | run, len(each))
        return Drawn(self._store, rows, groups, len(units), self._columns, told=self._told, idle=idle)

    def _sorted_out(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows that have something to teach, at least one, and the others."""
        assert self._store is not None
        if not self.spare_idle:
            return rows, rows[:0]
        advantage = np.abs(self._columns["advantage"])
        telling = np.array([advantage[self._store.offsets[row] : self._store.offsets[row + 1]].any() for row in rows])
        telling[0] |= not telling.any()
        return rows[telling], rows[~telling]

    def examine(self, store: TokenStore, units: Units) -> Measured:
        """What the policy's likeliest answers to held-out prompts earn; the loss is the mean reward with its sign changed."""
        rows = np.unique(units.segments).astype(np.int64)
        told = report(self._judged(store, rows, self.examined, 1, 0)[0], 1)
        if self.held_out is not None:
            told |= self.held_out(self._judged(store, rows, self.writer, self.stage.answers, _HELD_OUT)[0])
        return Measured(-told["reward"], None, told)

    def close(self) -> None:
        """Nothing is left to do."""

    def cursor(self) -> dict[str, Any]:
        """Where it stands, as plain data."""
        return {
            "drawn": self._drawn,
            "written": self._written,
            "number": self._number,
            "told": self._told,
            "rewards": self.rewards,
            "estimate": self.estimate.state(),
        }

    def state(self, step: int) -> dict[str, Tensor]:
        """What is left to learn from after so many steps, as tensors; nothing where the next step writes a new rollout."""
        if self._store is None or step // self.steps != self._number:
            return {}
        named = {name: getattr(self._store, name) for name in COLUMNS} | {
            f"column.{name}": c for name, c in self._columns.items()
        }
        return {f"{PREFIX}{name}": torch.from_numpy(np.array(column)) for name, column in named.items()}

    def load(self, cursor: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take up what `cursor` and `state` gave."""
        self._drawn, self._written, self._number = cursor["drawn"], cursor["written"], cursor["number"]
        self._told = dict(cursor["told"])
        if cursor["rewards"] != self.rewards and self.world.main:
            self.note("The rewards have changed since the checkpoint: their settings, or a file that they name.")
        self.estimate.load(cursor["estimate"])
        mine = {name.removeprefix(PREFIX): value.numpy() for name, value in tensors.items() if name.startswith(PREFIX)}
        if not mine:
            self._number = -1
            return
        self._columns = {name.removeprefix("column."): column for name, column in mine.items() if name.startswith("column.")}
        self._store = memory_store(self.prompts.store.header, {name: mine[name] for name in COLUMNS})

    def _roll(self, step: int) -> None:
        """Write and judge the answers that the next steps learn from."""
        judged = self._answers(step)
        if isinstance(self.stage, OnlineDPO):
            learnt, chosen = paired(judged, self.stage.margin)
            self._store = pair_store(learnt)
        else:
            learnt, chosen = judged.chosen(self._usable(judged)), {}
            self._store = as_store(learnt)
        rows = np.arange(len(self._store))
        drawn = Drawn(self._store, rows, rows << 32 | rows, len(rows))
        self._columns, told = self.estimate(learnt, drawn)
        self._told = report(judged, self.stage.answers) | chosen | told

    def _answers(self, step: int) -> Judged:
        """Answers to a batch of prompts; where the stage asks for it, drawn until enough groups have something to teach."""
        found = self._ask(step)
        again = self.stage.resample if isinstance(self.stage, GRPO) else 0
        wanted = len(np.unique(found.groups))
        kept = found.chosen(~equal_groups(found.rewards, found.groups)) if again else found
        for _ in range(again):
            missing = wanted - len(np.unique(kept.groups))
            if not missing:
                break
            more = self._ask(step)
            telling = more.chosen(~equal_groups(more.rewards, more.groups))
            first = np.unique(telling.groups)[:missing]
            kept = kept.and_then(telling.chosen(np.isin(telling.groups, first)))
        return kept if len(kept.written) else found

    def _ask(self, step: int) -> Judged:
        """Draw prompts, have them answered and judged; each process does its share, all know the whole."""
        drawn = self.prompts(self._drawn)
        self._drawn += 1
        judged, given, verdict = self._judged(drawn.store, drawn.segments, self.writer, self.stage.answers, self._written)
        judged = replace(judged, groups=judged.groups + self._written)
        self._written += len(judged.written)
        if self.world.main:
            self._show(step, given, verdict)
        return judged

    def _judged(
        self, store: TokenStore, rows: NDArray[np.int64], writer: Writer, answers: int, first: int
    ) -> tuple[Judged, list[Answer], Verdict]:
        """Answers to the prompts in these rows, as everyone knows them; and this process's share with what the rewards said of it."""
        mine = np.array_split(np.arange(len(rows)), self.world.size)[self.world.rank]
        begin = first + (int(mine[0]) * answers if len(mine) else 0)
        written = writer([store.segment(int(rows[place]))[0].tolist() for place in mine], begin)
        owners = np.repeat(rows[mine], answers)
        given = [answer_of(store, int(row), said) for row, said in zip(owners, written, strict=True)]
        verdict = self.judge(given)
        everyone = self.world.gathered((written, verdict))
        together = [said for some, _ in everyone for said in some]
        groups = np.repeat(np.arange(len(rows)) * answers, answers)
        rewards = np.array(
            [total if good else np.nan for _, v in everyone for total, good in zip(v.total, v.usable, strict=True)]
        )
        rewards -= self.stage.cut_penalty * np.array([not said.finished for said in together])
        return Judged(together, np.repeat(rows, answers), groups, rewards, [v for _, v in everyone], store), given, verdict

    def _usable(self, judged: Judged) -> NDArray[np.bool_]:
        """Which answers are learnt from: those with a reward, and whole ones where the stage wants them; all, where that leaves none."""
        usable = ~np.isnan(judged.rewards)
        if isinstance(self.stage, GRPO) and self.stage.skip_cut:
            usable &= np.array([answer.finished for answer in judged.written])
        return usable if usable.any() else np.ones_like(usable)

    def _show(self, step: int, answers: Sequence[Answer], verdict: Verdict) -> None:
        """Tell of bad rewards and of some answers."""
        for line in verdict.lines():
            self.note(line)
        for index in range(min(self.stage.show, len(answers)) if self.tell else 0):
            rewards = {name: values[index] for name, values in verdict.components.items()} | {"total": verdict.total[index]}
            question = str(answers[index].messages[-1].get("content", "")) if answers[index].messages else ""
            assert self.tell is not None
            self.tell(SampleRecord(step, question, answers[index].text, rewards))
