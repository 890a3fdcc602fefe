"""What lies in an adapter folder, read without the model it belongs to: its layers, ranks and sizes, and the base it names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.format import PREFIX, WEIGHTS_FILE, load_tensors, read_config, read_settings

_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class Contents:
    """A LoRA adapter as its files have it.

    Attributes:
        folder: where it lies.
        config: its settings.
        base: the base model it names, or an empty text.
        transposed: whether its layers store [in, out].
        layers: layer → A [r, in] and B [out, r].
        others: keys of the other tensors: magnitudes, modules and rows trained whole.
    """

    folder: Path
    config: AdapterConfig
    base: str
    transposed: bool
    layers: dict[str, tuple[Tensor, Tensor]]
    others: tuple[str, ...]

    @property
    def largest_rank(self) -> int:
        """The largest rank of a layer."""
        return max(len(a) for a, _ in self.layers.values())

    def shape(self, layer: str) -> tuple[int, int]:
        """(out, in) of an adapted layer."""
        a, b = self.layers[layer]
        return b.shape[0], a.shape[1]

    def count(self) -> int:
        """Numbers in the factors."""
        return sum(a.numel() + b.numel() for a, b in self.layers.values())


def read_contents(folder: Path) -> Contents:
    """Read a LoRA adapter's folder.

    Raises:
        UserError: no adapter there, another kind, one that Luthier does not read, or a torn file.
    """
    config = read_config(folder)
    value = read_settings(folder)
    tensors = load_tensors(folder / WEIGHTS_FILE)
    names = [key.removeprefix(PREFIX).removesuffix(_A) for key in tensors if key.endswith(_A)]
    layers = {name: (tensors[PREFIX + name + _A], tensors[PREFIX + name + _B]) for name in names if PREFIX + name + _B in tensors}
    return Contents(
        folder=folder,
        config=config,
        base=value.get("base_model_name_or_path") or "",
        transposed=bool(value.get("fan_in_fan_out")),
        layers=layers,
        others=tuple(key for key in tensors if not key.endswith((_A, _B))),
    )
