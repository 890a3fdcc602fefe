"""The reference's log-probabilities, computed once and kept beside the token store.

One float32 for each token of the store; those that are no targets stay 0. The file's name is a hash of all that the numbers depend on:
the base model's files, the adapter that is continued, how a fresh one starts, and the dtype. So runs that differ in anything else (the
loss, β, the learning rate) share it, and a resumed run finds it again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.data.batch import Drawn
from luthier.data.store import TokenStore
from luthier.data.store_cache import content_digest, key_of
from luthier.data.units import Units
from luthier.engine.parallel import World
from luthier.engine.passes import batches_of_passes
from luthier.engine.reference import Reference, starts_at_base
from luthier.files import write_atomic
from luthier.models.hub import fetch
from luthier.recipe.schema import Recipe

TOGETHER = 256
"""Segments that are scored between two words about progress."""


def precomputed(
    reference: Reference,
    store: TokenStore,
    units: list[Units],
    *,
    key: str,
    micro_batch_tokens: int,
    packing: bool,
    world: World,
    progress: Callable[[str, int, int], None],
) -> NDArray[np.float32]:
    """Log-probabilities under the reference of all targets of these units, float32 [N], mapped from the disk.

    Args:
        reference: computes them, unless they are there already.
        store: holds the segments; its folder takes the file.
        units: of training and of validation.
        key: see `reference_key`.
        micro_batch_tokens: most tokens in one pass.
        packing: see `Policy.hidden`.
        world: the processes; each computes its share.
        progress: called now and then.
    """
    file = store.folder.parent / "reference" / f"{key}.bin"
    if not file.is_file():
        segments = np.unique(np.concatenate([each.segments for each in units])).astype(np.int64)
        values = torch.zeros(len(store.tokens))
        for begin in range(0, len(segments), TOGETHER):
            rows = segments[begin : begin + TOGETHER]
            drawn = Drawn(store, rows, store.group[rows].astype(np.int64), len(rows))
            for _, places, batch in batches_of_passes(drawn, micro_batch_tokens, world):
                owners = batch.target_segments.cpu().numpy()
                begins = store.offsets[rows[places]] - batch.cu_seqlens[:-1].cpu().numpy()
                values[batch.targets.cpu().numpy() + begins[owners]] = reference.logprobs(batch, packing=packing).cpu()
            progress("scoring the reference", begin + len(rows), len(segments))
        world.sum_in_place([values])
        if world.main:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, values.numpy().tobytes())
        world.barrier()
    return np.memmap(file, np.float32, mode="r")


def reference_key(recipe: Recipe, dtype: torch.dtype) -> str:
    """A hash of what the reference's log-probabilities depend on, besides the store."""
    model = recipe.model
    parts: dict[str, Any] = {
        "base": _digests(fetch(model.path, hub=model.hub, revision=model.revision)),
        "adapter": _digests(fetch(model.adapter, hub=model.hub)) if model.adapter else None,
        "dtype": str(dtype),
        "model": model.model_dump(mode="json", exclude={"path", "adapter", "hub", "revision", "tokenizer"}),
    }
    if not starts_at_base(recipe):
        parts["method"] = [recipe.method.model_dump(mode="json"), recipe.train.seed]
    return key_of(parts)


def _digests(folder: Path) -> list[list[str]]:
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    return [[path.name, content_digest(path)] for path in files]
