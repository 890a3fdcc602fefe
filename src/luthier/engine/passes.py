"""Running a global batch through the policy, pass by pass: what a step, an evaluation and a first look have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.data.batch import Batch, Drawn, lay_out
from luthier.engine.parallel import World
from luthier.engine.reference import REFERENCE, Reference
from luthier.errors import UserError
from luthier.generation.decode import evaluating
from luthier.models.policy import Policy
from luthier.models.scorer import Scorer
from luthier.objectives import Objective, Scores, score, score_values


def passes_of(drawn: Drawn, micro_batch_tokens: int, world: World) -> list[NDArray[np.int64]]:
    """The places (0…S-1) of each pass of this process; some may be empty."""
    places = np.arange(len(drawn.segments))
    return lay_out(places, drawn.lengths, drawn.groups, micro_batch_tokens=micro_batch_tokens, ranks=world.size)[world.rank]


def batches_of_passes(drawn: Drawn, micro_batch_tokens: int, world: World) -> Iterator[tuple[int, NDArray[np.int64], Batch]]:
    """Number, places and batch, on its device, of each pass of this process that is not empty."""
    for number, places in enumerate(passes_of(drawn, micro_batch_tokens, world)):
        if len(places):
            yield number, places, drawn.batch(places).to(world.device)


def denominators_of(objective: Objective, drawn: Drawn) -> NDArray[np.float64]:
    """What the sums of this global batch are divided by, as shares of its sources; known before the first backward pass, on every rank."""
    drawn = drawn.whole() if len(drawn.idle) else drawn
    store, kind, segments = drawn.store, objective.denominator, drawn.segments
    count, first = len(store.header.sources), slice(None)
    if kind == "tokens":
        weights = [float(store.segment(int(row))[1][1:].sum(dtype=np.float64)) for row in segments]
    elif kind == "constant":
        return np.eye(1, count)[0]
    else:  # an example is a unit, which the upper half of a group's number counts; a pair is a group
        _, first = np.unique(drawn.groups >> 32 if kind == "examples" else drawn.groups, return_index=True)
        weights = [1.0] * len(first)
    return np.bincount(store.source[segments[first]], weights, minlength=count).astype(np.float64)


def scored(
    policy: Policy, objective: Objective, reference: Reference | None, batch: Batch, *, packing: bool, smoothing: float = 0.0
) -> Scores:
    """All that an objective needs to know of a batch."""
    if objective.values is not None:
        assert isinstance(policy, Scorer)
        return score_values(policy, batch, packing=packing, at=objective.values)
    known = batch.columns.get(REFERENCE)
    if objective.reference and known is None:
        assert reference is not None
        known = reference.logprobs(batch, packing=packing)
    asked = {"entropy": objective.entropy, "critic": objective.critic, "teacher": objective.teacher}
    scores = score(policy, batch, packing=packing, smoothing=smoothing, **asked)
    return replace(scores, reference=known) if objective.reference else scores


def with_brought(objective: Objective, drawn: Drawn) -> Drawn:
    """A global batch with the columns that its objective makes of what each segment brought.

    Raises:
        UserError: what a row brought is not what the objective needs; found before, but in a stream.
    """
    made: dict[str, NDArray[np.float32]] = {}
    for name, value in objective.brings.items():
        found = []
        for row in map(int, drawn.segments):
            try:
                found.append(value(drawn.store.brought(row)))
            except ValueError as error:
                raise UserError(str(error), where=drawn.store.origin(row)) from error
        made[name] = np.array(found, np.float32)
    return drawn._replace(of_segments={**drawn.of_segments, **made}) if made else drawn


@torch.no_grad()
def looked_at(
    policy: Policy,
    objective: Objective,
    reference: Reference | None,
    drawn: Drawn,
    *,
    micro_batch_tokens: int,
    packing: bool,
    world: World,
) -> Drawn:
    """A global batch with what is known of it before, and what its objective has to know of the whole; the same on every rank."""
    drawn = with_brought(objective, reference.known(drawn) if reference else drawn)
    look = objective.first_look
    if look is None:
        return drawn
    seen = look.drawn(drawn)
    sums = torch.zeros(2, len(seen.segments), dtype=torch.float64, device=world.device)
    with evaluating(policy.model):
        for _, places, batch in batches_of_passes(seen, micro_batch_tokens, world):
            found = look.seen(scored(policy, objective, reference, batch, packing=packing), batch)
            sums[:, torch.from_numpy(places).to(world.device)] = torch.stack(found).double()
    world.sum_in_place([sums])
    columns = look.columns(drawn, *sums.cpu().numpy())
    return drawn._replace(of_segments={**drawn.of_segments, **columns})
