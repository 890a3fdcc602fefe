"""GGUF files, written tensor by tensor and read back.

A GGUF file is a header, settings (key, type, value), a table of tensors (name, shape, type, where) and their bytes. The `gguf` package
writes and reads the format; what is done here is to hand it one tensor at a time, so that a model of any size passes through the
memory of its largest tensor.

`q8_0` keeps 32 numbers as bytes and one 16-bit scale: 8.5 bits a number, and an error of at most 1/254 of the largest of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.errors import UserError
from luthier.export.gguf.plan import Planned, Type
from luthier.export.gguf.vocabulary import Vocabulary
from luthier.export.tensors import Later, write_model
from luthier.models.stored import StoredWeights

if TYPE_CHECKING:
    from gguf import GGUFWriter

_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


def library() -> Any:
    """The `gguf` package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files need the package `gguf`", hint="Install it with `pip install 'luthier[gguf]'`.") from None
    return gguf


def write(
    file: Path,
    architecture: str,
    settings: Mapping[str, Any],
    vocabulary: Vocabulary,
    tensors: Sequence[Planned],
    extra: Mapping[str, Tensor],
    stored: StoredWeights,
    wanted: Type,
    name: str,
) -> None:
    """Write one file.

    Args:
        file: to write.
        architecture: of llama.cpp.
        settings: by the name of the writer's method.
        vocabulary: tokens and template.
        tensors: in the order of the file.
        extra: float32 tensors that no folder has: name → value.
        stored: the folder's weights.
        wanted: type of the matrices.
        name: of the model, for people.

    Raises:
        UserError: a number does not fit into `f16`.
    """
    gguf = library()
    writer: GGUFWriter = gguf.GGUFWriter(file, architecture)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[wanted]])
    if wanted == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for setting, value in settings.items():
        getattr(writer, f"add_{setting}")(value)
    vocabulary.write(writer)
    _write_tensors(writer, tensors, extra, stored)


def _write_tensors(writer: GGUFWriter, tensors: Sequence[Planned], extra: Mapping[str, Tensor], stored: StoredWeights) -> None:
    import numpy as np

    for key, value in extra.items():
        writer.add_tensor_info(key, value.shape, np.dtype(np.float32), value.numel() * 4)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size, raw_dtype=tensor.raw)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for value in extra.values():
            writer.write_tensor_data(value.float().numpy())
        for tensor in tensors:
            writer.write_tensor_data(as_bytes(tensor.make(stored), tensor.type, tensor.name))
    finally:
        writer.close()


def as_bytes(value: Tensor, kind: Type, name: str) -> Any:
    """A tensor as the file holds it: a numpy array of bytes.

    Args:
        value: of any floating type.
        kind: of the file.
        name: for the message.

    Raises:
        UserError: a number does not fit into `f16`.
    """
    if kind == "q8_0":
        gguf = library()
        return gguf.quants.quantize(value.float().contiguous().numpy(), gguf.GGMLQuantizationType.Q8_0)
    cast = value.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]).contiguous()
    if kind == "f16" and not cast.isfinite().all():
        raise UserError(f"a number in `{name}` is too large for f16", where="--type", hint="Use `bf16`, `q8_0` or `f32`.")
    return cast.flatten().view(torch.uint8).numpy()


def unpack(file: Path, tensors: Sequence[Planned], folder: Path) -> None:
    """Write the weights of a GGUF file as a model folder has them, float32: the way back of `write`.

    Args:
        file: the GGUF file.
        tensors: what it was planned to hold.
        folder: exists; gets safetensors.
    """
    back = _Back(file)
    parts: dict[str, list[tuple[Planned, int]]] = {}
    for tensor in tensors:
        for number, key in enumerate(tensor.keys):
            if tensor.name != "output.weight" or key not in parts:  # a copy of the embeddings
                parts.setdefault(key, []).append((tensor, number))
    later: dict[str, Later] = {}
    for key, pieces in parts.items():
        later[key] = Later(_shape(pieces), torch.float32, partial(back.whole, pieces))
    write_model(folder, later, largest=2 * 10**9)


def _shape(pieces: Sequence[tuple[Planned, int]]) -> tuple[int, ...]:
    """Of the tensor of a folder that lies in these places."""
    return tuple(_joined([tensor.layout.from_gguf(torch.empty(tensor.shape, device="meta"))[at] for tensor, at in pieces]).shape)


def _joined(parts: list[Tensor]) -> Tensor:
    """The only part, or parts of all experts' outputs."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class _Back:
    """Tensors of a file, turned back; the last one that was read is kept, for it may hold many experts."""

    def __init__(self, file: Path) -> None:
        gguf = library()
        self._dequantize = gguf.quants.dequantize
        self._found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
        self._last: tuple[str, list[Tensor]] = ("", [])

    def whole(self, pieces: Sequence[tuple[Planned, int]]) -> Tensor:
        """The tensor of a folder that lies in these places, float32."""
        return _joined([self._read(tensor)[number] for tensor, number in pieces])

    def _read(self, tensor: Planned) -> list[Tensor]:
        if self._last[0] != tensor.name:
            found = self._found[tensor.name]
            values = torch.from_numpy(self._dequantize(found.data, found.tensor_type).copy())
            self._last = tensor.name, tensor.layout.from_gguf(values.reshape(tensor.shape))
        return self._last[1]
