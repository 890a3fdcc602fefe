"""Weight files, one tensor at a time: safetensors and PyTorch's `.bin` read, safetensors shards written.

A `.bin` file is a pickle. It is read with `weights_only`, which admits tensors and plain containers and refuses everything that could run
code, and mapped into memory, so that only the tensors at hand are read from disk. Written tensors wait in memory until a shard is full.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from luthier.errors import UserError
from luthier.files import write_json

SAFE_INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
SHARD_BYTES = 2 * 10**9
"""Size at which a shard is written; what a conversion holds in memory is little more."""


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: safetensors if there are any, else `.bin`; in the order of their names.

    Raises:
        UserError: there are none, or the index names one that is not there.
    """
    for index, pattern in ((SAFE_INDEX, "model*.safetensors"), (BIN_INDEX, "pytorch_model*.bin")):
        if (folder / index).is_file():
            return _indexed(folder, folder / index)
        if found := sorted(folder.glob(pattern)):
            return found
    raise UserError("no weights here", where=str(folder), hint="Are all files of the model there?")


def _indexed(folder: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"not a usable index ({type(error).__name__}: {error})", where=str(index)) from None
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{len(absent)} of {len(names)} weight files are missing, such as `{absent[0]}`", where=str(folder))
    return [folder / name for name in names]


def stream(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of weight files, on the CPU, as stored.

    Raises:
        UserError: a file is torn, or holds more than tensors.
    """
    for file in files:
        yield from _safetensors(file) if file.suffix == ".safetensors" else read_pickled(file).items()


def _safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 (not a mapping)
                yield name, content.get_tensor(name)
    except SafetensorError as error:
        raise UserError(f"a weight file cannot be read ({error})", where=str(file), hint="Fetch it again.") from None


def read_pickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin` or `.pth` file, mapped into memory where its layout allows.

    Raises:
        UserError: the file is torn, or holds something else than tensors by name.
    """
    try:
        content: Any = _load(file)
    except UnpicklingError as error:
        reason = (str(error).strip().splitlines() or ["refused"])[0]
        raise UserError(f"this file holds more than tensors and is not read ({reason})", where=str(file)) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"a weight file cannot be read ({reason})", where=str(file), hint="Fetch it again.") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError("this file holds something else than tensors by name", where=str(file))
    return content


def _load(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    return torch.load(file, map_location="cpu", weights_only=True)  # the layout before PyTorch 1.6 cannot be mapped


class ShardWriter:
    """Writes tensors as `model.safetensors`, or as shards with their index.

    Args:
        folder: where to; it exists.
        limit: bytes at which a shard is written.
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES) -> None:
        self._folder, self._limit = folder, limit
        self._waiting: dict[str, Tensor] = {}
        self._bytes = self._total = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; it must not change any more."""
        size = tensor.numel() * tensor.element_size()
        if self._waiting and self._bytes + size > self._limit:
            self._flush()
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == size
        self._waiting[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)  # files share no storage
        self._bytes += size

    def close(self) -> None:
        """Write the rest, give the shards their names, and write the index."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return
        places: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._part(number).rename(self._folder / file)
            places |= dict.fromkeys(names, file)
        write_json(
            self._folder / SAFE_INDEX, {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(places.items()))}
        )

    def _flush(self) -> None:
        if self._waiting:
            save_file(self._waiting, self._part(len(self._shards)), metadata={"format": "pt"})
            self._shards.append(list(self._waiting))
            self._total += self._bytes
            self._waiting, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}"
