"""Adapters on fused experts, folded into files tensor by tensor.

The architecture has the experts of a layer in two parameters. Files have them so, too, or, as most are published, one tensor for each
expert and projection:

    experts.gate_up_proj [E, 2 I, H]   ↔   experts.3.gate_proj.weight [I, H], experts.3.up_proj.weight [I, H]     (Mixtral: w1, w3)
    experts.down_proj [E, H, I]        ↔   experts.3.down_proj.weight [H, I]                                      (Mixtral: w2)

Which lies where is read from the names and held against the shapes: every expert of every adapted layer must be there, or nothing is
said to be known, and the model is merged in memory instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.models.adapters.experts import ExpertFactors, LoRAExperts, expert_layers
from luthier.models.mixture import PIECES
from luthier.models.stored import StoredWeights


@dataclass(frozen=True, slots=True)
class ExpertWork:
    """What happens to one tensor between the files: called, it returns W + s B A in float32.

    Attributes:
        stored: the files.
        key: of the tensor.
        adapter: of the fused parameter, with its values.
        expert: the one whose tensor it is; None for all at once.
        rows: which outputs of the expert it has, as (first, number); all, where the tensor is fused.
    """

    stored: StoredWeights
    key: str
    adapter: ExpertFactors
    expert: int | None = None
    rows: tuple[int, int] = (0, 0)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """The result, in float32."""
        weight = self.stored.tensor(self.key).float()
        if self.expert is None:
            return self.adapter.added_to(weight)
        return weight + self.adapter.difference(self.expert).narrow(0, *self.rows)


def expert_work(
    model: nn.Module, stored: StoredWeights, values: Mapping[str, Tensor], own: Callable[[str], str | None]
) -> dict[str, ExpertWork] | None:
    """Key in the files → what happens to that tensor; None where some are not found.

    Args:
        model: on the `meta` device, with the adapter in it; its experts' adapters are given their values.
        stored: the base's files.
        values: of the adapter, by parameter name.
        own: the key of a parameter that lies in the files as the architecture has it, or None.
    """
    work: dict[str, ExpertWork] = {}
    for name, layer in expert_layers(model).items():
        for part, adapter, _ in layer.parts():
            for factor in ("lora_A", "lora_B"):
                value = values[f"{name}.adapters.{part}.{factor}"].float()
                setattr(adapter, factor, nn.Parameter(value, requires_grad=False))
            key = own(f"{name}.{part}")
            found = {key: ExpertWork(stored, key, adapter)} if key is not None else _apart(stored, name, layer, part, adapter)
            if not found:
                return None
            work |= found
    return work


def _apart(stored: StoredWeights, name: str, layer: LoRAExperts, part: str, adapter: ExpertFactors) -> dict[str, ExpertWork]:
    """The tensors of the single experts of a layer that were fused into a parameter; none where they are not all there."""
    number = re.search(r"\.(\d+)\.", name)
    weight: Tensor = getattr(layer.base_layer, part)
    if number is None or adapter.transposed or not getattr(layer.base_layer, "is_concatenated", True):
        return {}
    for pieces in PIECES[part]:
        rows, inputs = weight.shape[1] // len(pieces), weight.shape[2]
        pattern = re.compile(rf"(?:.*\.)?{number[1]}\.(?:.*\.)?experts\.(\d+)\.({'|'.join(pieces)})\.weight")
        hits = [(key, match) for key in stored if (match := pattern.fullmatch(key)) and stored[key].shape == (rows, inputs)]
        work = {
            key: ExpertWork(stored, key, adapter, int(match[1]), (pieces.index(match[2]) * rows, rows)) for key, match in hits
        }
        if len({(each.expert, each.rows) for each in work.values()}) == len(work) == adapter.count * len(pieces):
            return work
    return {}
