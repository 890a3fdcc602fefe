"""Weight files written tensor by tensor, so that a model of any size passes through the memory of its largest tensor.

A safetensors file is the length of its header (8 bytes), the header (JSON: name → type, shape, where its bytes lie) and the bytes. The
header needs shapes only, so it can be written before the first tensor is computed. Larger models are several such files with an index
beside them. The format: github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from luthier.errors import UserError
from luthier.files import write_json
from luthier.models.stored import TYPES

NAMES = {dtype: name for name, dtype in TYPES.items()}
"""What safetensors calls torch's types."""
UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class Later:
    """A tensor that is made when its turn comes: its shape and type, and how."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def bytes_of(size: str) -> int:
    """A size such as `2GB` or `500MB` in bytes.

    Raises:
        ValueError: it is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])B", size, re.IGNORECASE)
    if match is None:
        raise ValueError(size)
    return int(float(match[1]) * UNITS[match[2].upper()])


def free_folder(out: str | Path) -> Path:
    """The folder to write.

    Raises:
        UserError: it holds something.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("already there, and not empty", where=str(out), hint="Give another folder with `--out`.")
    return out


def shard_size(text: str) -> int:
    """`--max-shard-size` in bytes.

    Raises:
        UserError: it is not a size.
    """
    try:
        return bytes_of(text)
    except ValueError:
        raise UserError(f"`{text}` is not a size", where="--max-shard-size", hint="Write it as `2GB` or `500MB`.") from None


def write_model(folder: Path, tensors: Mapping[str, Later], *, largest: int) -> None:
    """Write `model.safetensors`, or numbered shards and their index.

    Args:
        folder: exists.
        tensors: in the order of the file.
        largest: bytes of one file; a tensor larger than that has a file of its own.
    """
    shards = list(_shards(tensors, largest))
    if len(shards) == 1:
        write_tensors(folder / "model.safetensors", shards[0])
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(folder / file, shard)
        where |= dict.fromkeys(shard, file)
    total = sum(tensor.size for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_json(folder / "model.safetensors.index.json", index)


def write_tensors(file: Path, tensors: Mapping[str, Later]) -> None:
    """Write one safetensors file; each tensor is made, written and forgotten."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        span = [offset, offset := offset + tensor.size]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the bytes of tensors are aligned
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            value = tensor.make().to(tensor.dtype).contiguous()
            assert value.shape == tensor.shape, name
            stream.write(value.flatten().view(torch.uint8).numpy().data if value.numel() else b"")


def _shards(tensors: Mapping[str, Later], largest: int) -> Iterator[dict[str, Later]]:
    shard: dict[str, Later] = {}
    for name, tensor in tensors.items():
        if shard and sum(part.size for part in shard.values()) + tensor.size > largest:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard
