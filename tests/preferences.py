"""Pairs and opinions of random tokens, a policy beside its reference, and a step's loss and gradients as the engine finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.data.batch import Batch, Drawn
from luthier.data.store import Header, SourceInfo, TokenStore, memory_store
from luthier.engine.parallel import start_world
from luthier.engine.passes import batches_of_passes, denominators_of, looked_at, scored
from luthier.models.policy import Policy
from luthier.objectives import Objective, score
from tests.families import build

Row = tuple[list[int], list[int], int]
"""Prompt, answer, label."""

PROMPTS = (7, 3, 12, 5, 9)
CHOSEN = (11, 19, 6, 14, 8)
REJECTED = (5, 13, 21, 9, 17)


def pairs(
    prompts: Sequence[int] = PROMPTS, chosen: Sequence[int] = CHOSEN, rejected: Sequence[int] = REJECTED, *, seed: int = 0
) -> list[Row]:
    """Rows of these lengths, two by two: the better answer first."""
    generator = np.random.default_rng(seed)

    def tokens(length: int) -> list[int]:
        return [int(token) for token in generator.integers(3, 256, length)]

    rows: list[Row] = []
    for prompt, better, worse in ((tokens(n), tokens(b), tokens(w)) for n, b, w in zip(prompts, chosen, rejected, strict=True)):
        rows += [(prompt, better, 1), (prompt, worse, 0)]
    return rows


def drawn_of(rows: Sequence[Row], *, paired: bool) -> Drawn:
    """A global batch of these rows; `paired`: each two are one unit, else each is one."""
    lengths = [len(prompt) + len(answer) for prompt, answer, _ in rows]
    places = np.arange(len(rows))
    units = places // 2 if paired else places
    columns = {
        "tokens": [token for prompt, answer, _ in rows for token in prompt + answer],
        "weight": [weight for prompt, answer, _ in rows for weight in [0.0] * len(prompt) + [1.0] * len(answer)],
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "label": [label for _, _, label in rows],
        "example": units,
        "group": units,
        "source": places * 0,
        "file": places * 0,
        "line": places,
    }
    header = Header("rows", "dpo", None, 512, 0, 0, (SourceInfo("rows.json", "train", 0, len(rows)),))
    store: TokenStore = memory_store(header, columns)
    return Drawn(store, places, units << 32 | units, int(units[-1]) + 1)


@dataclass
class Fixed:
    """A reference model, as the engine asks for it."""

    policy: Policy

    def known(self, drawn: Drawn) -> Drawn:
        """Nothing is."""
        return drawn

    @torch.no_grad()
    def logprobs(self, batch: Batch, *, packing: bool) -> Tensor:
        """Log-probabilities of the targets of a batch."""
        return score(self.policy, batch, packing=packing).logprob


def beside(family: str, *, distance: float = 0.01, **changes: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A policy and the reference that it came from; `changes` overwrite fields of their config."""
    policy, reference = build(family, **changes), build(family, **changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=distance)
    return policy.requires_grad_(True), reference.requires_grad_(True)


def learnt(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    objective: Objective,
    drawn: Drawn,
    *,
    micro: int = 10_000,
    packing: bool = True,
) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    """Loss, gradients and metrics of a global batch, in passes of at most `micro` tokens."""
    model.zero_grad()
    world, policy = start_world(), Policy(model)
    fixed, loss, told = Fixed(Policy(reference)), 0.0, dict.fromkeys(objective.metrics, 0.0)
    known = looked_at(policy, objective, fixed, drawn, micro_batch_tokens=micro, packing=packing, world=world)  # type: ignore[arg-type]
    denominator = float(denominators_of(objective, known).sum())
    for _, _, batch in batches_of_passes(known, micro, world):
        found = objective(scored(policy, objective, fixed, batch, packing=packing), batch)  # type: ignore[arg-type]
        (found.total / denominator).backward()
        loss += found.total.item() / denominator
        told = {name: told[name] + float(found.metrics[name]) / denominator for name in told}
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, told


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor], *, rounding: float = 1e-5) -> None:
    """Gradients are equal to rounding; those that are zero in exact arithmetic are held to the scale of the whole."""
    assert mine.keys() == theirs.keys()
    floor = 1e-3 * torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    for name, gradient in mine.items():
        error = (gradient - theirs[name]).norm() / theirs[name].norm().clamp_min(floor)
        assert error <= rounding, (name, float(error))
