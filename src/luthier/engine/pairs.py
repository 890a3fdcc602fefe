"""Pairs of the policy's own answers: the best and the worst to each prompt, as the rewards have it.

An answer is never in two pairs, so a rollout of n answers to a prompt gives one pair, the clearest that they hold. A prompt whose answers
earn the same, or nearly, has no pair: a choice between equals is a coin that was thrown, and to learn it is to learn noise. Such
prompts are counted and left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.data.batch import Drawn
from luthier.data.sides import CHOSEN, REJECTED
from luthier.data.store import TokenStore
from luthier.data.units import Units
from luthier.engine.estimates import COLUMN, Scorer, beside_sampler, laid, served
from luthier.engine.evaluate import evaluate
from luthier.engine.judged import Judged, as_store
from luthier.objectives import Objective
from luthier.objectives.online import COUNTS
from luthier.recipe.schema import OnlineDPO

PAIR = 2
"""Answers that are learnt from together."""


def paired(judged: Judged, margin: float) -> tuple[Judged, dict[str, float]]:
    """The best and the worst answer to each prompt, one after the other, where they are further apart than `margin`; and what is told.

    Where no prompt has led to a pair there is one nevertheless, so that a step has something to compute; see `telling`.
    """
    best, worst = [], []
    for group in np.unique(judged.groups):
        answers = np.flatnonzero(judged.groups == group)
        known = answers[~np.isnan(judged.rewards[answers])]
        order = known[np.argsort(judged.rewards[known], kind="stable")] if len(known) > 1 else answers
        best.append(order[-1])
        worst.append(order[0])
    pairs = np.stack([best, worst], 1)
    apart = judged.rewards[pairs[:, 0]] - judged.rewards[pairs[:, 1]]
    clear = _clear(apart, margin)
    told = {"pairs": float(clear.mean()), "gap": float(apart[clear].mean()) if clear.any() else 0.0}
    return judged.taken((pairs[clear] if clear.any() else pairs[:1]).ravel()), told


def telling(pairs: Judged, margin: float) -> NDArray[np.bool_]:
    """Which answers of `paired` lie in a pair that is one, bool [N]."""
    return np.repeat(_clear(pairs.rewards[::PAIR] - pairs.rewards[1::PAIR], margin), PAIR)


def _clear(apart: NDArray[np.float64], margin: float) -> NDArray[np.bool_]:
    return apart > max(margin, 1e-12)  # never true of NaN


def pair_store(pairs: Judged) -> TokenStore:
    """Pairs as segments of a store, the better answer of each first."""
    return as_store(pairs, np.tile([CHOSEN, REJECTED], len(pairs.written) // PAIR))


class PairEstimate:
    """What online DPO has to know of pairs: the reference's opinion, where they are learnt from more than once."""

    def __init__(self, stage: OnlineDPO, scorer: Scorer) -> None:
        self.stage, self.scorer = stage, scorer

    def __call__(self, judged: Judged, drawn: Drawn) -> tuple[dict[str, NDArray[np.float32]], dict[str, float]]:
        """Columns for `objectives.online`, and what is told of another program that wrote."""
        store = drawn.store
        scored = self.scorer(drawn, logprob=served(self.stage), reference=self.stage.passes > 1)
        columns = {COLUMN[name]: column for name, column in scored.items()}
        columns[COUNTS] = np.repeat(telling(judged, self.stage.margin), store.supervised).astype(np.float64)
        return laid(columns, store), beside_sampler(self.stage, judged, scored)

    def state(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def load(self, state: object) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class HeldOutPairs:
    """Measures on pairs of answers to held-out prompts whether the policy prefers what the rewards prefer.

    Attributes:
        margin: by how much the answers of a pair have to differ.
        objective: of the stage.
        scorer: knows the policy, the reference, and how to run them.
    """

    margin: float
    objective: Objective
    scorer: Scorer

    def __call__(self, judged: Judged) -> dict[str, float]:
        """The objective's metrics on the pairs in `judged`, and the share of prompts that have one."""
        pairs, told = paired(judged, self.margin)
        if not told["pairs"]:
            return told
        store, scorer = pair_store(pairs), self.scorer
        rows = np.arange(len(store), dtype=np.int32)
        measured = evaluate(
            scorer.policy,
            self.objective,
            store,
            Units(np.arange(0, len(rows) + 1, PAIR), rows),
            micro_batch_tokens=scorer.micro_batch_tokens,
            packing=scorer.packing,
            world=scorer.world,
            reference=scorer.reference,
        )
        return {**told, **measured.metrics}
