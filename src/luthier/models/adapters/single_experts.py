r"""Adapters that were trained when each expert was a module of its own: read as adapters on fused experts, exactly.

Until transformers 5 (and in old checkpoints with code of their own) an expert had three linear layers, and an adapter file has a pair of
factors for each: `experts.3.w1.lora_A.weight`. Today's parameter holds gate and branch of an expert one below the other, and so do the
factors, with twice the rank:

    W_gate + s B_g A_g   over   W_up + s B_u A_u   =   W + s · [B_g 0; 0 B_u] [A_g; A_u]

The scaling stays what it was (alpha follows the rank). What an expert has no adapter for is zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from luthier.models.adapters.config import AdapterConfig
from luthier.models.mixture import PIECES, fused_parameters, mixtures

_KEY = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.lora_([AB])\.weight")
Pieces = dict[tuple[int, int], dict[str, Tensor]]
"""(expert, which part of the fused parameter) → its factors A [r, in] and B [out, r]."""


@dataclass(frozen=True, slots=True)
class SingleExperts:
    """What a file has for the experts of a model, one by one.

    Attributes:
        keys: of the tensors that belong to it.
        pieces: fused parameter → the factors of what was fused into it.
        sizes: fused parameter → experts, outputs, inputs.
    """

    keys: set[str]
    pieces: dict[str, Pieces]
    sizes: dict[str, tuple[int, int, int]]

    def rank(self, name: str) -> int:
        """The rank of a fused parameter's adapter: that of its parts together."""
        return sum(self._ranks(name).values())

    def settings(self, config: AdapterConfig) -> AdapterConfig:
        """The adapter's settings with the fused parameters named."""
        ranks = {name: self.rank(name) for name in self.pieces}
        alphas = {}
        for name, rank in ranks.items():
            before, alpha = config.rank_and_alpha(name)
            alphas[name] = alpha * (math.sqrt(rank / before) if config.rslora else rank / before)
        return replace(
            config,
            parameters=(*config.parameters, *ranks),
            rank_pattern={**ranks, **config.rank_pattern},
            alpha_pattern={**alphas, **config.alpha_pattern},
        )

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A [E · r, in] and B [out, r · E] of a fused parameter, as files have them."""
        count, outputs, inputs = self.sizes[name]
        ranks = self._ranks(name)
        first, places = 0, {}
        for part in sorted(ranks):
            places[part], first = first, first + ranks[part]
        a, b = torch.zeros(count, first, inputs), torch.zeros(count, outputs, first)
        for (expert, part), factor in self.pieces[name].items():
            row, rank = part * factor["B"].shape[0], len(factor["A"])
            a[expert, places[part] : places[part] + rank] = factor["A"].float()
            b[expert, row : row + factor["B"].shape[0], places[part] : places[part] + rank] = factor["B"].float()
        return a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)

    def _ranks(self, name: str) -> dict[int, int]:
        """Part → its rank."""
        return {part: len(factor["A"]) for (_, part), factor in self.pieces[name].items()}


def single_experts(tensors: Mapping[str, Tensor], model: nn.Module) -> SingleExperts | None:
    """What a file has for the experts of `model` one by one; None if it has nothing of that kind.

    Args:
        tensors: of an adapter's file, by key.
        model: with or without the adapter in it; its layers are found by their numbers, whatever leads to the experts in the file.
    """
    found = SingleExperts(set(), {}, {})
    fused = {}
    for mixture in mixtures(model):
        module = getattr(mixture.experts, "base_layer", mixture.experts)
        number = _number(mixture.name)
        for part in fused_parameters(module):
            weight: Tensor = getattr(module, part)
            fused[number, part] = f"{mixture.name}.{part}", (len(weight), weight.shape[1], weight.shape[2])
    for key, tensor in tensors.items():
        if (match := _KEY.fullmatch(key)) is None or (place := _place(match[3], _number(match[1]), fused)) is None:
            continue
        (name, size), piece = fused[place[0]], place[1]
        found.keys.add(key)
        found.sizes[name] = size
        found.pieces.setdefault(name, {}).setdefault((int(match[2]), piece), {})[match[4]] = tensor
    return found if found.keys else None


def _place(piece: str, number: str, fused: Collection[tuple[str, str]]) -> tuple[tuple[str, str], int] | None:
    """The fused parameter (layer, name) that a former layer of an expert is a part of, and which part."""
    for layer, name in fused:
        for former in PIECES[name]:
            if layer == number and piece in former:
                return (layer, name), former.index(piece)
    return None


def _number(name: str) -> str:
    match = re.search(r"\.(\d+)\.", name)
    return match[1] if match else ""
