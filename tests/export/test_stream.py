"""Merging tensor by tensor gives what merging in memory gives, in the memory of a tensor, and knows rounded bases."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier import UserError
from luthier.export.merge import merge, merged
from luthier.export.stream import stream
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.format import write_adapter
from luthier.models.adapters.insert import insert_adapter
from luthier.models.methods import load_adapter
from luthier.models.policy import save_model
from luthier.models.source import find_source
from luthier.models.stored import StoredWeights
from luthier.recipe.schema import Model
from tests.chat_folders import adapter_folder, model_folder, write_tokenizer
from tests.export.test_merge import run_folder
from tests.families import MATRIX, MIXTURES, build
from tests.models.quantised import load, logits

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"dora": True},
    "embeddings and head": {"modules_to_save": ("embed_tokens", "lm_head")},
    "embeddings": {"modules_to_save": ("embed_tokens",)},
    "head": {"target": ("q_proj", "lm_head")},
}


def weights(folder: Path) -> dict[str, Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def in_memory(base: Path, adapter: Path, out: Path) -> Path:
    save_model(merged(find_source(base, adapter=adapter)), out)
    return out


def same(streamed: Path, whole: Path) -> None:
    ours, theirs = weights(streamed), weights(whole)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", MATRIX)
def test_every_family_is_streamed_to_the_same_weights(family: str, tmp_path: Path) -> None:
    base = model_folder(family, tmp_path / "base")
    adapter = adapter_folder(family, tmp_path / "adapter", base)
    assert stream(base, adapter, dtype=torch.float32) is not None
    same(merge(base, tmp_path / "out", adapter=adapter, max_shard_size="60KB"), in_memory(base, adapter, tmp_path / "whole"))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_what_else_an_adapter_holds(settings: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_tokenizer(tmp_path / "base")
    model = build("llama", tie_word_embeddings=tied)
    save_model(model, base)
    monkeypatch.setattr("tests.chat_folders.build", lambda family: build(family, tie_word_embeddings=tied))
    adapter = adapter_folder("llama", tmp_path / "adapter", base, **SETTINGS[settings])
    assert stream(base, adapter, dtype=torch.float32) is not None
    same(merge(base, tmp_path / "out", adapter=adapter), in_memory(base, adapter, tmp_path / "whole"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] == (tied and settings in ("plain", "dora"))


def test_names_without_the_decoder_s_prefix_are_found(tmp_path: Path) -> None:
    """GPT-2 is published as `h.0…`, not `transformer.h.0…`."""
    base = model_folder("gpt2", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file({name.removeprefix("transformer."): value for name, value in tensors.items()}, base / "model.safetensors")
    adapter = adapter_folder("gpt2", tmp_path / "adapter", base)
    assert stream(base, adapter, dtype=torch.float32) is not None
    same(merge(base, tmp_path / "out", adapter=adapter), in_memory(base, adapter, tmp_path / "whole"))


def quantised_run(path: Path, base: Path, said: str, init: str = "default") -> Path:
    recipe = f"model: {{path: {base}, quantization: {said}}}\ndata: {{train: [a.json]}}\n"
    recipe += f"method: {{type: lora, rank: 4, init: {init}}}\n"
    return run_folder(path, recipe + "train: {precision: fp32}\n")


@pytest.mark.parametrize(
    ("kind", "said"),
    [("nf4", "{bits: 4}"), ("int8", "{bits: 8}"), ("hqq", "{method: hqq}"), ("torchao int8", "{method: torchao, bits: 8}")],
)
def test_onto_quantised_is_the_model_that_was_trained(kind: str, said: str, tmp_path: Path) -> None:
    base = model_folder("llama", tmp_path / "base")
    trained = load(base, kind)
    run = quantised_run(tmp_path / "run", base, said)
    final = adapter_folder("llama", run / "final", base)
    load_adapter(trained, final)
    expected = logits(trained.train())  # in training LLM.int8 does not round inputs on a CPU
    told: list[str] = []
    rounded = merge(run, tmp_path / "rounded", onto="quantised", tell=told.append)
    assert not told
    scale = float(expected.abs().max())
    assert (logits(AutoModelForCausalLM.from_pretrained(rounded)) - expected).abs().max() <= 1e-4 * scale
    plain = merge(run, tmp_path / "plain", tell=told.append)
    assert len(told) == 1
    assert "--onto quantised" in told[0]
    assert (logits(AutoModelForCausalLM.from_pretrained(plain)) - expected).abs().max() > 1e-3 * scale
    same(plain, in_memory(base, final, tmp_path / "whole"))


def test_a_part_that_would_count_twice_is_told(tmp_path: Path) -> None:
    base = model_folder("llama", tmp_path / "base")
    run, told = quantised_run(tmp_path / "run", base, "{bits: 4}", "loftq"), list[str]()
    adapter_folder("llama", run / "final", base)
    merge(run, tmp_path / "plain", tell=told.append)
    assert len(told) == 1
    assert "that part counts twice" in told[0]


def test_onto_quantised_needs_to_know_how(tmp_path: Path) -> None:
    base = model_folder("llama", tmp_path / "base")
    adapter = adapter_folder("llama", tmp_path / "adapter", base)
    with pytest.raises(UserError, match="nothing says that this adapter was trained on a base in few bits"):
        merge(base, tmp_path / "out", adapter=adapter, onto="quantised")
    assert find_source(base).base == Model(path=str(base))


PEAK = """
import sys
from pathlib import Path
import torch
import luthier.export.merge as export
from luthier.engine.verdict import peak_memory

small, large, out = map(Path, sys.argv[1:4])
onto, way = sys.argv[4:]
if way == "whole":
    export.stream = lambda *_, **__: None
export.merge(small, out / "small", onto=onto)
before = peak_memory(torch.device("cpu"))
export.merge(large, out / "large", onto=onto)
print(peak_memory(torch.device("cpu")) - before)
"""


@pytest.fixture(scope="module")
def large_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """Two QLoRA runs on bases in files of 32 MB, of one layer and of sixteen, and the bytes of the larger base."""
    folder = tmp_path_factory.mktemp("large")
    for name, layers in (("small", 1), ("large", 16)):
        base, run = write_tokenizer(folder / name / "base"), folder / name / "run"
        model = build("llama", hidden_size=1024, intermediate_size=2048, num_hidden_layers=layers).bfloat16()
        model.save_pretrained(base, max_shard_size="32MB")
        model.config.name_or_path = str(base)
        insert_adapter(model, AdapterConfig(rank=8, alpha=8), seed=1)
        write_adapter(quantised_run(run, base, "{bits: 4}") / "final", model)
    size = sum(file.stat().st_size for file in (folder / "large" / "base").glob("*.safetensors"))
    return folder / "small" / "run", folder / "large" / "run", size


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process")
@pytest.mark.parametrize(("onto", "way"), [("base", "streamed"), ("quantised", "streamed"), ("base", "whole")])
def test_a_large_model_passes_through_the_memory_of_a_shard(
    onto: str, way: str, large_runs: tuple[Path, Path, int], tmp_path: Path
) -> None:
    """The peak may grow by a file or two, not by the model; and where the model is loaded whole, this measure sees it."""
    if onto == "quantised":
        pytest.importorskip("bitsandbytes")
    small, large, size = large_runs
    assert size > 150e6
    command = [sys.executable, "-c", PEAK, str(small), str(large), str(tmp_path / "out"), onto, way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = f"{int(done.stdout) / 1e6:.0f} MB more for a model of {size / 1e6:.0f} MB"
    assert int(done.stdout) > size if way == "whole" else int(done.stdout) < 0.25 * size, told


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_streamed_however_the_files_have_them(family: str, tmp_path: Path) -> None:
    base = model_folder(family, tmp_path / "base")
    adapter = adapter_folder(family, tmp_path / "adapter", base, experts=True, target="all-linear")
    assert any("experts" in key for key in StoredWeights(adapter))
    assert stream(base, adapter, dtype=torch.float32) is not None
    same(merge(base, tmp_path / "out", adapter=adapter), in_memory(base, adapter, tmp_path / "whole"))


def test_experts_that_are_not_all_there_are_not_guessed(tmp_path: Path) -> None:
    base = model_folder("qwen3_moe", tmp_path / "base")
    adapter = adapter_folder("qwen3_moe", tmp_path / "adapter", base, experts=True)
    tensors = load_file(base / "model.safetensors")
    key = next(key for key in tensors if ".experts.2.up_proj" in key)
    save_file(
        {name.replace("up_proj", "branch") if name == key else name: value for name, value in tensors.items()},
        base / "model.safetensors",
    )
    assert stream(base, adapter, dtype=torch.float32) is None
