"""What lies in an adapter folder, read without the model it belongs to: its layers, ranks and sizes, and the base it names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.format import PREFIX, WEIGHTS_FILE, load_tensors, read_config, read_settings
from luthier.models.mixture import FUSED, INNER

Pair = tuple[Tensor, Tensor]
"""The factors of an adapter."""
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
        experts: fused parameter → A [E, r, in] and B [E, out, r].
        others: keys of the other tensors: magnitudes, modules and rows trained whole.
    """

    folder: Path
    config: AdapterConfig
    base: str
    transposed: bool
    layers: dict[str, Pair]
    experts: dict[str, Pair]
    others: tuple[str, ...]

    @property
    def parts(self) -> dict[str, Pair]:
        """The layers, and each expert of a fused parameter as a layer of its own, called by its number behind the parameter's name."""
        single = {
            f"{name}.{e}": pair for name, stacks in self.experts.items() for e, pair in enumerate(zip(*stacks, strict=True))
        }
        return self.layers | single

    @property
    def largest_rank(self) -> int:
        """The largest rank of a layer."""
        return max(len(a) for a, _ in self.parts.values())

    def alpha(self, part: str) -> float:
        """Numerator of the scaling of one of `parts`."""
        fused = part.rpartition(".")[0]
        return self.config.rank_and_alpha(fused if fused in self.experts else part)[1]

    def count(self) -> int:
        """Numbers in the factors."""
        return sum(a.numel() + b.numel() for a, b in self.parts.values())


def summarised(keys: Iterable[str]) -> str:
    """Keys of tensors in a few words: what they are called, and how many there are of each, such as `lora_E (42), lm_head.weight`."""
    parts = (key.removeprefix(PREFIX).split(".") for key in keys)
    counted = Counter(".".join(part[-2:]) if part[-1] in ("weight", "bias") else part[-1] for part in parts)
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counted.items())


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
    fused = {name: parameter for name in layers if (parameter := _fused(config, name))}
    return Contents(
        folder=folder,
        config=config,
        base=value.get("base_model_name_or_path") or "",
        transposed=bool(value.get("fan_in_fan_out")),
        layers={name: pair for name, pair in layers.items() if name not in fused},
        experts={parameter: _stacked(config, parameter, layers[name]) for name, parameter in fused.items()},
        others=tuple(key for key in tensors if not key.endswith((_A, _B))),
    )


def _fused(config: AdapterConfig, name: str) -> str:
    """The fused parameter whose adapter has this name in the file, or an empty text: a wrapper for each, that of the first innermost."""
    module = name.replace(INNER, "")
    known = [part for part in FUSED if config.selects_parameter(f"{module}.{part}")]
    return f"{module}.{known[-1 - name.count(INNER)]}" if known else ""


def _stacked(config: AdapterConfig, parameter: str, pair: Pair) -> Pair:
    """A [E · r, in] and B [out, r · E] as they lie in files, for each expert apart."""
    rank, _ = config.rank_and_alpha(parameter)
    a, b = pair
    return a.view(-1, rank, a.shape[1]), b.view(len(b), rank, -1).permute(2, 0, 1)


def as_stored(experts: Mapping[str, Pair]) -> dict[str, Pair]:
    """Adapters of fused parameters as they lie in files: name there → A [E · r, in] and B [out, r · E]."""
    found: dict[str, Pair] = {}
    for name, (a, b) in experts.items():
        module, _, part = name.rpartition(".")
        behind = sum(f"{module}.{other}" in experts for other in FUSED[FUSED.index(part) + 1 :])
        found[module + INNER * behind] = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
    return found
