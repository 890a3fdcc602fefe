r"""A LoRA adapter for engines that put it on their own copy of the base: llama.cpp and vLLM.

Both scale an adapter by one number, s = α / r, where PEFT knows rules by layer and other scalings (rsLoRA: α / √r). What does not fit
into one number is multiplied into B, so ΔW = s B A is the same:

* llama.cpp reads a GGUF file with A and B of each weight. B turns as its weight does (`luthier.export.gguf.layouts`): where rows of W
  change places, so do those of B. Ranks may differ;
* vLLM reads PEFT's folder, with one rank for all layers and without `rank_pattern`, so smaller factors are filled up with zeros.

Afterwards the updates are computed from what was written and compared with those of the adapter.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from luthier.data.tokenizer import load_tokenizer
from luthier.errors import UserError
from luthier.export.check import Difference
from luthier.export.combine import adapter_folder
from luthier.export.folder import new_folder
from luthier.export.gguf.architectures import Family, family_of
from luthier.export.gguf.export import new_file
from luthier.export.gguf.layouts import Layout, Same, Transposed
from luthier.export.gguf.plan import gguf_name
from luthier.export.gguf.write import library
from luthier.export.tensors import free_folder
from luthier.files import sync, temporary_sibling
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.contents import Contents, Pair, read_contents
from luthier.models.adapters.format import write_tensors
from luthier.models.hub import fetch
from luthier.models.loading import read_config
from luthier.models.source import find_source, has_tokenizer

TOLERANCE = 1e-5
"""How far an update may be from the adapter's, as a share of its largest number: products in float32 round."""


def for_llamacpp(name: str | Path, out: str | Path, *, checkpoint: int | None = None) -> Difference:
    """Write an adapter as a GGUF file for `llama-server --lora`.

    Args:
        name: an adapter folder or a run.
        out: the file to write; it must not exist yet.
        checkpoint: for a run, the step of a checkpoint.

    Returns:
        How far its updates are from the adapter's.

    Raises:
        UserError: no such adapter, one that is more than low-rank updates of whole layers, or a base that llama.cpp computes otherwise.
    """
    library()
    out = new_file(out)
    contents = _contents(name, checkpoint)
    config = read_config(fetch(contents.base))
    family = family_of(config, contents.base)
    layouts = {layer: _of_rows(family.layout(f"{layer}.weight", config)) for layer in contents.layers}
    pairs = {layer: _scaled(contents, layer) for layer in contents.layers}
    names = {layer: gguf_name(f"{layer}.weight", config, family) for layer in pairs}
    if missing := next((layer for layer, found in names.items() if found is None), None):
        raise UserError(f"llama.cpp has no place for `{missing}`", where=str(name))
    temporary = temporary_sibling(out.absolute())
    try:
        _write(temporary, family, {str(names[layer]): (a, layouts[layer].to_gguf([b])) for layer, (a, b) in pairs.items()})
        found = _read_back(temporary, {layer: str(names[layer]) for layer in pairs}, layouts)
        difference = _difference(pairs, found)
        difference.demand(str(name))
        sync(temporary)
        temporary.rename(out)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def for_vllm(name: str | Path, out: str | Path, *, checkpoint: int | None = None) -> Difference:
    """Write an adapter as a folder for `vllm serve --enable-lora`. Arguments, result and errors are those of `for_llamacpp`.

    Raises:
        UserError: also for an `out` that holds something.
    """
    out = free_folder(out)
    contents = _contents(name, checkpoint)
    rank = contents.largest_rank
    pairs = {layer: _scaled(contents, layer) for layer in contents.layers}
    config = AdapterConfig(rank=rank, alpha=rank, target=tuple(sorted({layer.rpartition(".")[2] for layer in pairs})))
    with new_folder(out) as temporary:
        content = config.to_peft(base=contents.base, transposed=contents.transposed)
        write_tensors(temporary, content, {layer: _filled(pair, rank) for layer, pair in pairs.items()})
        if has_tokenizer(contents.folder):
            load_tokenizer(contents.folder).save(temporary)
        difference = _difference(pairs, read_contents(temporary).layers)
        difference.demand(str(name))
    return difference


def _contents(name: str | Path, checkpoint: int | None) -> Contents:
    """The adapter, if other engines can put it on a base.

    Raises:
        UserError: they cannot.
    """
    folder = adapter_folder(name) if checkpoint is None else find_source(name, checkpoint=checkpoint).adapter
    if folder is None:
        raise UserError("a whole model, without adapter", where=str(name))
    contents = read_contents(folder)
    extra = [
        what
        for what, there in (
            ("DoRA", contents.config.dora),
            ("modules or rows trained whole", contents.others),
            ("fused experts", contents.experts),
        )
        if there
    ]
    if extra:
        raise UserError(
            f"other engines take low-rank updates of whole layers only, and this adapter has {extra[0]}",
            where=str(name),
            hint="Merge it into its base with `luthier export merge`.",
        )
    return contents


def _scaled(contents: Contents, layer: str) -> Pair:
    """A and s B in float32, so that the update is their product."""
    a, b = (factor.float() for factor in contents.layers[layer])
    rank = len(a)
    scale = contents.alpha(layer) / (math.sqrt(rank) if contents.config.rslora else rank)
    return a, b * scale


def _filled(pair: Pair, rank: int) -> Pair:
    """The pair with zeros up to a rank."""
    a, b = pair
    more = rank - len(a)
    return torch.nn.functional.pad(a, (0, 0, 0, more)), torch.nn.functional.pad(b, (0, more))


def _of_rows(layout: Layout) -> Layout:
    """How the rows of B are laid out: PEFT has [out, r] also where the weight is [in, out]."""
    return Same() if isinstance(layout, Transposed) else layout


def _write(file: Path, family: Family, tensors: dict[str, Pair]) -> None:
    gguf = library()
    writer = gguf.GGUFWriter(file, family.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)  # then llama.cpp takes B as it is
    for name, (a, b) in tensors.items():
        writer.add_tensor(f"{name}.lora_a", a.contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", b.contiguous().numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _read_back(file: Path, names: dict[str, str], layouts: dict[str, Layout]) -> dict[str, Pair]:
    read = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in library().GGUFReader(file).tensors}
    return {layer: (read[f"{name}.lora_a"], layouts[layer].from_gguf(read[f"{name}.lora_b"])[0]) for layer, name in names.items()}


def _difference(expected: dict[str, Pair], found: dict[str, Pair]) -> Difference:
    """The largest distance of two updates of the same layer."""
    if expected.keys() != found.keys():
        return Difference("updates", math.inf, TOLERANCE, "Luthier")
    return Difference("updates", max(_distance(expected[layer], found[layer]) for layer in expected), TOLERANCE, "Luthier")


def _distance(expected: Pair, found: Pair) -> float:
    first, second = (b @ a for a, b in (expected, found))
    largest: Tensor = first.abs().max().clamp_min(1e-12)
    return float((first - second).abs().max() / largest)
