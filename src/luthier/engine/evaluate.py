"""Measure a policy on held-out units: mean loss, perplexity where the loss is a likelihood, and what the objective tells besides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from luthier.data.batch import Drawn
from luthier.data.store import TokenStore
from luthier.data.units import Units
from luthier.engine.parallel import World
from luthier.engine.passes import batches_of_passes, denominators_of, looked_at, scored
from luthier.engine.reference import Reference
from luthier.generation.decode import evaluating
from luthier.models.policy import Policy
from luthier.objectives import LIKELIHOOD, Objective


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over the validation units, by the objective's own denominator.

    Attributes:
        loss: of the objective; in nats per token where it is a likelihood.
        perplexity: exp(loss) of a likelihood, else None.
        metrics: what the objective tells, by name.
        sources: loss of each source, where there are several.
    """

    loss: float
    perplexity: float | None
    metrics: Mapping[str, float]
    sources: Mapping[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """Share of tokens, pairs or examples that it is right about, where the objective tells it."""
        return self.metrics.get("accuracy")


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
    reference: Reference | None = None,
) -> Measured:
    """Evaluate `units`; every rank takes a share, and all return the same numbers."""
    segments = np.unique(units.segments).astype(np.int64)
    drawn = Drawn(store, segments, store.example[segments].astype(np.int64) << 32 | store.group[segments], len(units))
    how: dict[str, Any] = {"micro_batch_tokens": micro_batch_tokens, "world": world}
    drawn = looked_at(policy, objective, reference, drawn, packing=packing, **how)
    shares = denominators_of(objective, drawn)
    sizes = ((), len(shares), len(objective.metrics))
    total, by_source, metrics = (torch.zeros(size, dtype=torch.float64, device=world.device) for size in sizes)
    with evaluating(policy.model):
        for _, _, batch in batches_of_passes(drawn, **how):
            loss = objective(scored(policy, objective, reference, batch, packing=packing), batch)
            total += loss.total.double()
            by_source.index_add_(0, batch.source, loss.segments.double())
            metrics += torch.tensor([float(loss.metrics[name]) for name in objective.metrics], device=world.device)
    world.sum_in_place([total, by_source, metrics])
    weight = float(shares.sum())
    mean = float(total) / weight
    named = zip(store.source_names, by_source.tolist(), shares.tolist(), strict=True)
    losses = {name: part / share for name, part, share in named if share}
    perplexity = (math.exp(mean) if mean < 700 else math.inf) if objective.name == LIKELIHOOD.name else None
    means = {name: value / weight for name, value in zip(objective.metrics, metrics.tolist(), strict=True)}
    return Measured(mean, perplexity, objective.told(means), losses if len(losses) > 1 else {})
