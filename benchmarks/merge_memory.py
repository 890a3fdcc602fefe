"""The memory that merging takes: a LoRA adapter of rank 16 into a model of the shape of Llama-2 7B, from files to files.

    python benchmarks/merge_memory.py                                  # writes 13.5 GB beside --folder, and deletes them again
    python benchmarks/merge_memory.py --layers 4 --onto quantised      # an eighth of the layers, rounded to NF4 on the way

Memory depends on shapes and not on values, so the base's files are full of holes: zeros that take no place on the disk. Printed are the
sizes, and for `luthier export merge` in a process of its own the peak of its resident memory (which counts the pages of files too) and
its CPU time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, PreTrainedModel

from luthier.data.tokenizer import load_tokenizer
from luthier.engine.verdict import peak_memory
from luthier.export.tensors import NAMES
from luthier.files import write_json
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.format import write_adapter
from luthier.models.adapters.insert import insert_adapter
from luthier.models.hub import fetch
from luthier.models.quantize.base import skeleton

SHARD = 5 * 10**9
"""Bytes of a file of the base."""


def make_base(folder: Path, layers: int) -> PreTrainedModel:
    """Llama-2 7B with this number of layers as a folder of zeros, and its skeleton."""
    config = LlamaConfig(num_hidden_layers=layers, dtype=torch.bfloat16)  # its defaults are those of 7B
    model = skeleton(config, torch.bfloat16)
    folder.mkdir(parents=True)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    load_tokenizer(fetch("tiny")).save(folder)
    where = {}
    for number, shard in enumerate(_shards(model), 1):
        file = f"model-{number:05}.safetensors"
        _write_holes(folder / file, shard)
        where |= dict.fromkeys(shard, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    return model


def _shards(model: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if sum(tensor.nbytes for tensor in shard.values()) + parameter.nbytes > SHARD:
            yield shard
            shard = {}
        shard[name] = parameter
    yield shard


def _write_holes(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file of these shapes with a header and nothing behind it but its length."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        span = [end, end := end + tensor.nbytes]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def make_run(folder: Path, base: Path, model: PreTrainedModel) -> Path:
    """What a QLoRA run on that base leaves behind, as far as merging reads it."""
    model.config.name_or_path = str(base)
    insert_adapter(model, AdapterConfig(rank=16, alpha=32), seed=None)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    write_adapter(folder / "final", model, {name: torch.randn(p.shape) * 0.01 for name, p in trained.items()})
    write_json(folder / "status.json", {"state": "done"})
    said = {"model": {"path": str(base), "quantization": {"bits": 4}}, "data": {"train": ["rows.json"]}}
    write_json(folder / "recipe.yaml", said | {"method": {"type": "lora", "rank": 16}, "train": {"precision": "bf16"}})
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--onto", choices=("base", "quantised"), default="base")
    parser.add_argument("--folder", type=Path, help="where the files go; default: the system's place for temporary ones")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.run is not None:
        _merge(chosen.run, chosen.onto)
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        base = Path(folder) / "base"
        model = make_base(base, chosen.layers)
        weights = sum(parameter.numel() for parameter in model.parameters())
        run = make_run(Path(folder) / "run", base, model)
        print(
            f"{weights / 1e9:.2f} thousand million weights, {2 * weights / 1e9:.1f} GB in bfloat16, {chosen.layers} layers",
            flush=True,
        )
        subprocess.run([sys.executable, __file__, "--run", str(run), "--onto", chosen.onto], check=True)


def _merge(run: Path, onto: str) -> None:
    """Merge in this process, and say what it took."""
    from luthier.cli.app import run as command

    code = command(["export", "merge", str(run), "--out", str(run.parent / "merged"), "--onto", onto])
    if code:
        sys.exit(code)
    print(f"peak memory {peak_memory(torch.device('cpu')) / 1e9:.2f} GB, {time.process_time():.0f} CPU-s")


if __name__ == "__main__":
    main()
