"""The weights of a folder as its files hold them, read one at a time.

Only the tensor that is asked for is read, so a model of any size costs the memory of its largest tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""What torch calls the types of safetensors."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies, and what it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class StoredWeights:
    """The safetensors of a model folder.

    Args:
        folder: holds one file, or shards and their index (`loading.check_weights` says whether it does).
    """

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            files = [folder / name for name in sorted(set(names))]
        else:
            files = sorted(folder.glob("*.safetensors"))
        self._stored = {name: stored for file in files for name, stored in _contents(file)}

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __getitem__(self, name: str) -> Stored:
        return self._stored[name]

    def tensor(self, name: str) -> Tensor:
        """A tensor as stored, on the CPU."""
        with safe_open(self._stored[name].file, framework="pt") as file:
            value: Tensor = file.get_tensor(name)
        return value


def _contents(file: Path) -> Iterator[tuple[str, Stored]]:
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118  (not a mapping)
            part = opened.get_slice(name)
            yield name, Stored(file, tuple(part.get_shape()), TYPES[part.get_dtype()])
