"""Measure a policy on held-out units: mean loss per supervised token, perplexity, share of tokens it would have chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from luthier.data.batch import lay_out, make_batch
from luthier.data.store import TokenStore
from luthier.data.units import Units
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
        sources: loss of each source, where there are several.
    """

    loss: float
    perplexity: float
    accuracy: float
    tokens: int
    sources: Mapping[str, float] = field(default_factory=dict)


@torch.no_grad()
def evaluate(
    policy: Policy,
    objective: Objective,
    store: TokenStore,
    units: Units,
    *,
    micro_batch_tokens: int,
    packing: bool,
    world: World,
) -> Measured:
    """Evaluate `units`; every rank takes a share, and all return the same numbers."""
    segments = np.unique(units.segments).astype(np.int64)
    mine = lay_out(
        segments, store.lengths[segments], store.group[segments], micro_batch_tokens=micro_batch_tokens, ranks=world.size
    )[world.rank]
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    by_source = torch.zeros(2, len(store.header.sources), dtype=torch.float64, device=world.device)
    was_training = policy.model.training
    policy.model.eval()
    for rows in mine:
        if not len(rows):
            continue
        batch = make_batch(store, rows).to(world.device)
        scores = score(policy, batch, packing=packing)
        loss = objective(scores, batch)
        sums += torch.stack([loss.total.double(), loss.metrics["accuracy"].double(), scores.weight.sum().double()])
        by_source[0].index_add_(0, batch.source, loss.segments.double())
        by_source[1].index_add_(0, batch.source[batch.target_segments], scores.weight.double())
    policy.model.train(was_training)
    world.sum_in_place([sums, by_source])
    total, accurate, weight = sums.tolist()
    mean = total / weight
    losses = {name: part / share for name, part, share in zip(store.source_names, *by_source.tolist(), strict=True) if share}
    told = losses if len(losses) > 1 else {}
    return Measured(mean, math.exp(mean) if mean < 700 else math.inf, accurate / weight, round(weight), told)
