"""Measure a policy on held-out units: mean loss per supervised token, perplexity, share of tokens it would have chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from luthier.data.batch import lay_out, make_batch
from luthier.data.prepare import Units
from luthier.data.store import TokenStore
from luthier.engine.parallel import World
from luthier.models.policy import Policy
from luthier.objectives import Objective, score


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over all supervised tokens of the validation units.

    Attributes:
        loss: in nats.
        perplexity: exp(loss).
        accuracy: 0…1.
        tokens: supervised tokens measured.
    """

    loss: float
    perplexity: float
    accuracy: float
    tokens: int


@torch.no_grad()
def evaluate(
    policy: Policy, objective: Objective, store: TokenStore, units: Units, *, micro_batch_tokens: int, packing: bool, world: World
) -> Measured:
    """Evaluate `units`; every rank takes a share, and all return the same numbers."""
    segments = np.unique(units.segments).astype(np.int64)
    mine = lay_out(
        segments, store.lengths[segments], store.group[segments], micro_batch_tokens=micro_batch_tokens, ranks=world.size
    )[world.rank]
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    was_training = policy.model.training
    policy.model.eval()
    for rows in mine:
        if not len(rows):
            continue
        batch = make_batch(store, rows).to(world.device)
        scores = score(policy, batch, packing=packing)
        loss = objective(scores, batch)
        sums += torch.stack([loss.total.double(), loss.metrics["accuracy"].double(), scores.weight.sum().double()])
    policy.model.train(was_training)
    world.sum_in_place([sums])
    total, accurate, weight = sums.tolist()
    mean = total / weight
    return Measured(mean, math.exp(mean) if mean < 700 else math.inf, accurate / weight, round(weight))
