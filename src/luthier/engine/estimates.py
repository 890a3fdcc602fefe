"""From judged answers to what an objective reads: log-probabilities, distances, values and advantages, as columns over tokens.

What depends on the weights that the answers were written with has to be scored before the first step changes them: their
log-probabilities, where the answers are learnt from more than once; the reference's, where the distance is part of the reward; the
critic's values. Everything is scored by the engine's own passes, so packed, padded and on several ranks it is the same. Advantages are
computed over the whole rollout at once, the same on every rank (`luthier.objectives.advantages`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.data.batch import Drawn
from luthier.data.store import TokenStore
from luthier.engine.judged import Judged
from luthier.engine.parallel import World
from luthier.engine.passes import batches_of_passes
from luthier.engine.reference import Reference
from luthier.generation.decode import evaluating
from luthier.models.policy import Policy
from luthier.objectives import score
from luthier.objectives.advantages import (
    answer_advantages,
    explained_variance,
    generalised,
    spread,
    token_rewards,
    whitened,
)
from luthier.objectives.grpo import divergence
from luthier.objectives.ppo import adapted
from luthier.recipe.schema import GRPO, PPO, Rollout

Array = NDArray[np.float64]
QUANTILES = {"advantage/p05": 0.05, "advantage/p25": 0.25, "advantage/p50": 0.5, "advantage/p75": 0.75, "advantage/p95": 0.95}
"""Told of the advantages of a rollout's tokens."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores the answers of a rollout, as they are before they are learnt from."""

    policy: Policy
    reference: Reference | None
    micro_batch_tokens: int
    packing: bool
    world: World

    @torch.no_grad()
    def __call__(self, drawn: Drawn, *, logprob: bool = False, value: bool = False, reference: bool = False) -> dict[str, Array]:
        """Float64 [T] over the answers' tokens, end to end, of what is asked for: `logprob`, `value`, `reference`."""
        wanted = [name for name, asked in (("logprob", logprob), ("value", value), ("reference", reference)) if asked]
        found = {name: torch.zeros(len(drawn.store.tokens), device=self.world.device) for name in wanted}
        with evaluating(self.policy.model):
            for _, places, batch in batches_of_passes(drawn, self.micro_batch_tokens, self.world):
                begins = torch.from_numpy(drawn.store.offsets[drawn.segments[places]]).to(batch.targets)
                targets = batch.targets + (begins - batch.cu_seqlens[:-1])[batch.target_segments]
                if logprob or value:
                    scores = score(self.policy, batch, packing=self.packing, critic=value)
                    for name, column in (("logprob", scores.logprob), ("value", scores.values)):
                        if name in found and column is not None:
                            found[name][targets] = column
                if reference:
                    assert self.reference is not None
                    found["reference"][targets] = self.reference.logprobs(batch, packing=self.packing)
        self.world.sum_in_place(list(found.values()))
        answers = answer_tokens(drawn.store)
        return {name: column.double().cpu().numpy()[answers] for name, column in found.items()}


class GroupEstimate:
    """Advantages without a critic: GRPO and its relatives."""

    def __init__(self, stage: GRPO, scorer: Scorer) -> None:
        self.stage, self.scorer = stage, scorer

    def __call__(self, judged: Judged, drawn: Drawn) -> tuple[dict[str, NDArray[np.float32]], dict[str, float]]:
        """Columns for `objectives.grpo`, and what is told."""
        stage, store = self.stage, drawn.store
        often, penal = stage.passes * stage.mini_batches > 1, bool(stage.beta) and stage.kl_in == "reward"
        scored = self.scorer(drawn, logprob=often or served(stage), reference=bool(stage.beta) and (penal or stage.passes > 1))
        offsets, told = answer_offsets(store), beside_sampler(stage, judged, scored)
        rewards, penalty = judged.rewards, np.zeros(offsets[-1])
        if penal:
            distance = _distance(scored.get("logprob", judged.logprobs), scored["reference"], stage)
            penalty, told["kl"] = stage.beta * distance, float(distance.mean())
            if stage.scale != "whiten":  # the reward of an answer is one number
                rewards = rewards - np.add.reduceat(penalty, offsets[:-1])
        advantage = spread(answer_advantages(rewards, judged.groups, baseline=stage.baseline, scale=stage.scale), offsets)
        if stage.scale == "whiten":
            to_go, _ = generalised(-penalty, np.zeros(len(penalty)), offsets, gamma=1.0, lam=1.0)
            advantage = whitened(advantage + to_go)
        columns = {"advantage": advantage} | {COLUMN[name]: column for name, column in scored.items()}
        if stage.importance_cap is not None:
            columns["sampler_logprob"] = judged.logprobs
        return laid(columns, store), told | _quantiles(advantage)

    def state(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def load(self, state: Mapping[str, float]) -> None:
        """Nothing."""


class CriticEstimate:
    """Advantages with a critic: PPO. β is steered towards the wanted distance from rollout to rollout."""

    def __init__(self, stage: PPO, scorer: Scorer) -> None:
        self.stage, self.scorer, self.beta = stage, scorer, stage.beta

    def __call__(self, judged: Judged, drawn: Drawn) -> tuple[dict[str, NDArray[np.float32]], dict[str, float]]:
        """Columns for `objectives.ppo`, and what is told."""
        stage, store = self.stage, drawn.store
        scored = self.scorer(drawn, logprob=True, value=True, reference=bool(self.beta))
        offsets, told = answer_offsets(store), {"beta": self.beta} | beside_sampler(stage, judged, scored)
        distance = scored["logprob"] - scored["reference"] if self.beta else np.zeros(offsets[-1])
        rewards = token_rewards(judged.rewards, self.beta * distance, offsets)
        if stage.whiten_rewards:
            rewards = whitened(rewards, centre=False)
        advantage, returns = generalised(rewards, scored["value"], offsets, gamma=stage.gamma, lam=stage.lam)
        told |= {"value": float(scored["value"].mean()), "return": float(returns.mean())}
        told["explained_variance"] = explained_variance(scored["value"], returns)
        if self.beta:
            answers = len(offsets) - 1
            told |= {"kl": float(distance.mean()), "kl_answer": float(distance.sum() / answers)}
            if stage.kl_target is not None:
                self.beta = adapted(self.beta, told["kl_answer"], stage.kl_target, answers, stage.kl_horizon)
        told |= _quantiles(advantage)
        if stage.whiten_advantages:
            advantage = whitened(advantage)
        columns = {"advantage": advantage, "return": returns, "old_logprob": scored["logprob"], "old_value": scored["value"]}
        if stage.importance_cap is not None:
            columns["sampler_logprob"] = judged.logprobs
        return laid(columns, store), told

    def state(self) -> dict[str, float]:
        """The present β."""
        return {"beta": self.beta}

    def load(self, state: Mapping[str, float]) -> None:
        """Take up a state written by `state`."""
        self.beta = state["beta"]


COLUMN = {"logprob": "old_logprob", "reference": "reference"}
"""What is scored → the column that objectives know it by."""


def served(stage: Rollout) -> bool:
    """Whether another program than the trainer writes the answers."""
    return stage.writer != "torch"


def beside_sampler(stage: Rollout, judged: Judged, scored: Mapping[str, Array]) -> dict[str, float]:
    """How far the trainer's log-probabilities are from those of another program that sampled, in nats a token; empty if none did."""
    return {"sampler_gap": float(np.abs(scored["logprob"] - judged.logprobs).mean())} if served(stage) else {}


def answer_tokens(store: TokenStore) -> NDArray[np.int64]:
    """Where the answers' tokens lie in a rollout's store, int64 [T]."""
    return np.flatnonzero(store.weight)


def answer_offsets(store: TokenStore) -> NDArray[np.int64]:
    """Where each answer begins among the answers' tokens, int64 [N + 1]."""
    return np.concatenate([[0], np.cumsum(store.supervised)])


def _distance(logprob: Array, reference: Array, stage: GRPO) -> Array:
    return divergence(torch.from_numpy(logprob), torch.from_numpy(reference), stage.kl_estimator).numpy()


def laid(columns: Mapping[str, Array], store: TokenStore) -> dict[str, NDArray[np.float32]]:
    """Columns over the answers' tokens as columns over all tokens of the store."""
    places, columns_of_store = answer_tokens(store), {}
    for name, column in columns.items():
        columns_of_store[name] = np.zeros(len(store.tokens), np.float32)
        columns_of_store[name][places] = column
    return columns_of_store


def _quantiles(advantage: Array) -> dict[str, float]:
    return dict(zip(QUANTILES, np.quantile(advantage, list(QUANTILES.values())).tolist(), strict=True)) if advantage.size else {}
