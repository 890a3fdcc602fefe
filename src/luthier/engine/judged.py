"""The answers of one rollout and what they are worth; as segments of a store; in numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.store import TokenStore, memory_store
from luthier.generation.bulk import Written
from luthier.objectives.advantages import equal_groups
from luthier.objectives.rewards import Answer, Verdict


@dataclass(frozen=True)
class Judged:
    """The answers of one rollout, those to the same prompt next to each other.

    Attributes:
        written: the answers.
        prompts: int64 [N], of each answer its prompt's row in `store`.
        groups: int64 [N], which answers belong together.
        rewards: float64 [N], NaN where an answer may not be learnt from.
        verdicts: what the rewards said, a part of the answers each.
        store: holds the prompts.
    """

    written: list[Written]
    prompts: NDArray[np.int64]
    groups: NDArray[np.int64]
    rewards: NDArray[np.float64]
    verdicts: list[Verdict]
    store: TokenStore

    @property
    def logprobs(self) -> NDArray[np.float64]:
        """What the sampler said of the answers' tokens, end to end, float64 [T]."""
        return np.concatenate([answer.logprobs for answer in self.written]).astype(np.float64)

    def chosen(self, keep: NDArray[np.bool_]) -> Judged:
        """The answers that `keep` [N] marks; verdicts stay whole, because they are told as they were."""
        return self.taken(np.flatnonzero(keep))

    def taken(self, rows: NDArray[np.int64]) -> Judged:
        """The answers at these places, in this order; verdicts stay whole."""
        written = [self.written[row] for row in rows]
        return replace(self, written=written, prompts=self.prompts[rows], groups=self.groups[rows], rewards=self.rewards[rows])

    def and_then(self, later: Judged) -> Judged:
        """Both, one after the other; the groups of the second are numbered on."""
        return Judged(
            [*self.written, *later.written],
            np.concatenate([self.prompts, later.prompts]),
            np.concatenate([self.groups, later.groups]),
            np.concatenate([self.rewards, later.rewards]),
            [*self.verdicts, *later.verdicts],
            self.store,
        )


def answer_of(store: TokenStore, row: int, written: Written) -> Answer:
    """What the rewards see of an answer to the prompt in a row of a store."""
    brought = store.brought(row)
    return Answer(
        messages=tuple(brought.get("messages", ())),
        text=written.text,
        reference=brought.get("reference"),
        tokens=len(written.tokens),
        finished=written.finished,
        payload=brought,
        origin=store.origin(row),
    )


def as_store(judged: Judged, labels: NDArray[np.int64] | None = None) -> TokenStore:
    """Prompts and answers as segments; the answers are supervised. `labels` [N] say which are the better ones, where that counts."""
    store, pieces, weights = judged.store, [], []
    for row, answer in zip(judged.prompts, judged.written, strict=True):
        prompt = store.segment(int(row))[0]
        pieces += [prompt, answer.tokens]
        weights += [np.zeros(len(prompt)), np.ones(len(answer.tokens))]
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(pieces[::2], pieces[1::2], strict=True)]
    places = {name: getattr(store, name)[judged.prompts] for name in ("example", "source", "file", "line")}
    columns = {"tokens": np.concatenate(pieces), "weight": np.concatenate(weights), "offsets": np.cumsum([0, *lengths])}
    label = np.full(len(lengths), -1) if labels is None else labels
    return memory_store(store.header, {**columns, **places, "group": judged.groups, "label": label})


def report(judged: Judged, answers: int) -> dict[str, float]:
    """What is told of a rollout: rewards of everything that was judged, lengths of what is learnt from."""
    totals = np.array([total for verdict in judged.verdicts for total in verdict.total])
    usable = np.array([good for verdict in judged.verdicts for good in verdict.usable])
    known = np.where(usable, totals, np.nan)
    told = {"reward": _mean(totals[usable]), "reward_std": float(totals[usable].std()) if usable.any() else 0.0}
    for name in judged.verdicts[0].components:
        values = np.array([value for verdict in judged.verdicts for value in verdict.components[name]])
        told[f"reward/{name}"] = _mean(values[~np.isnan(values)])
    told["bad_rewards"] = float(sum(len(verdict.bad) for verdict in judged.verdicts))
    if answers > 1:
        told["equal_groups"] = float(equal_groups(known, np.arange(len(known)) // answers).mean())
    told["answer_tokens"] = _mean(np.array([len(answer.tokens) for answer in judged.written]))
    told["cut"] = _mean(np.array([not answer.finished for answer in judged.written]))
    return told


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else 0.0
