"""On-policy distillation: in some steps the student's own answers stand in the place of the data's.

GKD, Agarwal et al. 2023 (arXiv:2306.13649).

A student that has only seen good answers does not know what to do after a word of its own that the teacher would not have said. So the
last answer of each conversation is written anew by the student as it is now, and the teacher says of every token of it what it would have
said there. Which steps those are, and what chance writes, are functions of the seed and the step: a resumed run goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.data.batch import Drawn
from luthier.data.hashing import mix64
from luthier.data.loader import Batches
from luthier.data.store import TokenStore, memory_store
from luthier.engine.parallel import World
from luthier.generation.bulk import Written

_OWN = 0x4F57  # purpose of random numbers


@dataclass
class OwnAnswers:
    """What every step of a distillation learns from.

    Args:
        data: the conversations.
        share: of the steps in which the policy answers, 0…1.
        seed: chooses those steps.
        write: answers prompts; the second argument is the index of the first answer, which is its randomness.
        world: the processes; each answers its share.
    """

    data: Batches
    share: float
    seed: int
    write: Callable[[Sequence[Sequence[int]], int], list[Written]]
    world: World

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in one pass over the data."""
        return self.data.steps_per_epoch

    @property
    def mixed(self) -> bool:
        """Whether there are several sources."""
        return self.data.mixed

    def __call__(self, step: int) -> Drawn:
        """What global batch `step` learns from. Where it is the policy's turn, it writes now."""
        drawn = self.data(step)
        if float(mix64(self.seed, _OWN, step)) / 2**64 >= self.share:
            return drawn
        prompts = [_prompt(*drawn.store.segment(int(row))) for row in drawn.segments]
        mine = np.array_split(np.arange(len(prompts)), self.world.size)[self.world.rank]
        first = int(mix64(self.seed, _OWN, step, 1) >> np.uint64(24)) + (int(mine[0]) if len(mine) else 0)
        written = self.write([prompts[place].tolist() for place in mine], first)
        answers = [answer for some in self.world.gathered(written) for answer in some]
        rows = np.arange(len(prompts))
        return drawn._replace(
            store=_store(drawn.store, drawn.segments, prompts, answers), segments=rows, of_tokens={}, of_segments={}
        )

    def cursor(self) -> object:
        """Where the data stands; the rest is a function of the step."""
        return self.data.cursor()

    def close(self) -> None:
        """As the data."""
        self.data.close()


def _prompt(tokens: NDArray[np.int32], weight: NDArray[np.float16]) -> NDArray[np.int32]:
    """A segment up to where its last supervised stretch begins."""
    last = int(np.flatnonzero(weight)[-1])
    before = np.flatnonzero(weight[:last] == 0)
    return tokens[: int(before[-1]) + 1]


def _store(
    store: TokenStore, segments: NDArray[np.int64], prompts: Sequence[NDArray[np.int32]], answers: Sequence[Written]
) -> TokenStore:
    """Prompts and answers as segments; the answers are supervised."""
    pairs = list(zip(prompts, answers, strict=True))
    weights = [np.repeat([0.0, 1.0], [len(prompt), len(answer.tokens)]) for prompt, answer in pairs]
    columns = {
        "tokens": np.concatenate([part for prompt, answer in pairs for part in (prompt, answer.tokens)]),
        "weight": np.concatenate(weights),
        "offsets": np.cumsum([0, *map(len, weights)]),
        "group": np.arange(len(pairs)),
    }
    same = {name: getattr(store, name)[segments] for name in ("example", "source", "file", "line", "label")}
    return memory_store(store.header, {**columns, **same})
