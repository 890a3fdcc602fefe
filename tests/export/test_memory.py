"""A model of a billion parameters leaves through a machine that could not hold it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

import luthier.models.tiny as tiny
from luthier.export.tensors import Later, write_model
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.format import write_tensors
from luthier.models.quantize.base import skeleton

LIMIT = 1.5e9
"""Bytes of the whole process, libraries included."""
CONFIG = LlamaConfig(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    bos_token_id=1,
    eos_token_id=2,
    dtype=torch.bfloat16,
    architectures=["LlamaForCausalLM"],
)
CHILD = """
import sys
from pathlib import Path
import torch
from luthier.engine.verdict import peak_memory
from luthier.export.gguf.export import export_gguf
from luthier.export.merge import merge
from luthier.export.shards import reshard

base, adapter, out = map(Path, sys.argv[1:4])
if sys.argv[4] == "merge":
    merge(adapter, out)
elif sys.argv[4] == "shards":
    reshard(base, out, max_shard_size="500MB")
else:
    export_gguf(base, out, kind=sys.argv[4], check=False)
print(peak_memory(torch.device("cpu")))
"""


def random_folder(folder: Path) -> Path:
    """A random model, written tensor by tensor, with the embedded model's tokenizer."""
    folder.mkdir()
    for file in Path(tiny.__path__[0]).glob("tokenizer*.json"):
        shutil.copy(file, folder)
    CONFIG.save_pretrained(folder)
    values = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).bfloat16() * 0.02
    tensors = {
        name: Later(
            tuple(value.shape),
            torch.bfloat16,
            lambda shape=value.shape: values.repeat(shape.numel() // len(values) + 1)[: shape.numel()].view(shape),
        )
        for name, value in skeleton(CONFIG).state_dict().items()
    }
    write_model(folder, tensors, largest=10**9)
    return folder


def adapter_folder(folder: Path, base: Path) -> Path:
    """An adapter on the queries and the values of all layers."""
    config = AdapterConfig(rank=8, alpha=8, target=("q_proj", "v_proj"))
    folder.mkdir()
    sizes = {"q_proj": 2048, "v_proj": 256}
    layers = {
        f"model.layers.{number}.self_attn.{name}": (torch.randn(8, 2048) * 0.02, torch.randn(size, 8) * 0.02)
        for number in range(CONFIG.num_hidden_layers)
        for name, size in sizes.items()
    }
    write_tensors(folder, config.to_peft(base=str(base), transposed=False), layers)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("billion")
    base = random_folder(place / "base")
    return base, adapter_folder(place / "adapter", base)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process")
@pytest.mark.parametrize("what", ["merge", "shards", "q8_0"])
def test_a_billion_parameters_in_less_memory_than_they_take(what: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    assert size > 2e9
    command = [sys.executable, "-c", CHILD, str(base), str(adapter), str(tmp_path / "out"), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < LIMIT, f"{int(done.stdout) / 1e6:.0f} MB for a model of {size / 1e6:.0f} MB"
    print(f"{what}: {int(done.stdout) / 1e6:.0f} MB")
