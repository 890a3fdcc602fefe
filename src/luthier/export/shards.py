"""Cut the weight files of any folder anew: many small ones for a slow line, or one for a fast disk.

Tensors pass from file to file one at a time, as they are, whatever their type; the index follows, and all other files of the folder
are copied. Afterwards every tensor is read back and compared with its original, bit by bit.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import torch

from luthier.errors import UserError
from luthier.export.folder import new_folder
from luthier.export.tensors import Later, free_folder, shard_size, write_model
from luthier.models.adapters.format import is_adapter
from luthier.models.hub import fetch
from luthier.models.loading import check_weights
from luthier.models.source import find_source
from luthier.models.stored import StoredWeights


def reshard(name: str | Path, out: str | Path, *, max_shard_size: str = "2GB", checkpoint: int | None = None) -> int:
    """Write a folder again with weight files of another size.

    Args:
        name: a folder with safetensors, a model's hub id, or a run that trained a whole model.
        out: the folder to write; it must not exist yet, or be empty.
        max_shard_size: largest weight file, such as `2GB`. A tensor that is larger has a file of its own.
        checkpoint: for a run, the step of a checkpoint.

    Returns:
        How many weight files were written.

    Raises:
        UserError: no weights there, an adapter, `out` holds something, the size is none, or what was written is not what was read.
    """
    out, largest = free_folder(out), shard_size(max_shard_size)
    folder = _folder(name, checkpoint)
    check_weights(folder)
    stored = StoredWeights(folder)
    tensors = {key: Later(stored[key].shape, stored[key].dtype, partial(stored.tensor, key)) for key in stored}
    with new_folder(out) as temporary:
        write_model(temporary, tensors, largest=largest)
        _same(stored, StoredWeights(temporary), str(name))
        for file in folder.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name not in _OF_OTHER_FILES:
                shutil.copy(file, temporary)
        return len(list(temporary.glob("*.safetensors")))


_OF_OTHER_FILES = {"model.safetensors.index.json", "pytorch_model.bin.index.json", "manifest.json"}
"""What describes the files as they were."""


def _folder(name: str | Path, checkpoint: int | None) -> Path:
    """The folder whose weights are meant."""
    folder = Path(name)
    if checkpoint is None and any(folder.glob("*.safetensors")) and not is_adapter(folder):
        return folder
    source = find_source(name, checkpoint=checkpoint)
    if source.adapter is not None:
        raise UserError("an adapter has one small file", where=str(name), hint="Merge it with `luthier export merge` first.")
    return fetch(source.base.path)


def _same(before: StoredWeights, after: StoredWeights, where: str) -> None:
    """Compare every tensor.

    Raises:
        UserError: one differs.
    """
    if set(before) != set(after):
        raise UserError("tensors were lost", where=where)
    for key in before:
        old, new = (weights.tensor(key).contiguous().view(torch.uint8) for weights in (before, after))
        if not torch.equal(old, new):
            raise UserError(f"`{key}` was not written as it was read", where=where, hint="Look at the disk.")
