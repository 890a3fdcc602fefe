"""Each family as GGUF: turned back it is the model, and other readers compute what transformers computed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from luthier import UserError
from luthier.export.check import answer_of
from luthier.export.gguf.architectures import FAMILIES, family_of
from luthier.export.gguf.export import export_gguf, turned_back
from luthier.export.gguf.plan import plan
from luthier.export.source import ready
from luthier.models.stored import StoredWeights
from tests import chat_folders
from tests.export.gguf.models import MODELS, model_folder

TOKENS = torch.tensor([5, 9, 200, 17, 3, 88, 41, 250, 7, 7, 120, 33, 64, 90, 11, 12, 13, 14, 15, 16, 18, 19, 20, 21])
BY_TRANSFORMERS = ("llama", "llama, tied", "mistral", "qwen2", "phi3", "bloom", "falcon 7b")
"""What transformers reads from GGUF by code of its own, settings included (it does not ask for the size of Qwen3's heads, for
Gemma-2's caps and window, nor for the number of GPT-2's positions)."""


def written(kind: str, tmp_path: Path, type_: str = "f32") -> tuple[Path, Path]:
    folder = model_folder(kind, tmp_path / "model")
    file = tmp_path / "out.gguf"
    export_gguf(folder, file, kind=type_, check=False)
    return folder, file


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found[:, : expected.shape[1]] - expected).abs().max() / expected.abs().max())


def test_every_family_is_here() -> None:
    assert {config().model_type for config in MODELS.values()} == set(FAMILIES)


@pytest.mark.parametrize("kind", MODELS)
def test_turned_back_it_is_the_model(kind: str, tmp_path: Path) -> None:
    folder, file = written(kind, tmp_path)
    config = AutoConfig.from_pretrained(folder)
    tensors = plan(StoredWeights(folder), config, family_of(config, ""), "f32", "")
    assert distance(turned_back(folder, file, tensors, TOKENS), answer_of(folder, TOKENS)) <= 1e-5


@pytest.mark.parametrize("kind", BY_TRANSFORMERS)
def test_transformers_reads_the_same_model(kind: str, tmp_path: Path) -> None:
    folder, file = written(kind, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    with torch.no_grad():
        found = model(TOKENS[None], use_cache=False).logits[0]
    assert distance(found, answer_of(folder, TOKENS)) <= 1e-4


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp is not here: pip install 'luthier[llamacpp]'"
)
@pytest.mark.parametrize("kind", MODELS)
def test_llamacpp_computes_the_same(kind: str, tmp_path: Path) -> None:
    from luthier.export.gguf.llamacpp import LlamaCpp

    folder, file = written(kind, tmp_path)
    with LlamaCpp(file, length=64) as engine:
        found = distance(engine.logits(TOKENS), answer_of(folder, TOKENS))
    print(f"{kind}: {found:.1e}")
    assert found <= 1e-3


@pytest.mark.parametrize(("kind", "type_", "bound"), [("llama", "q8_0", 0.05), ("gpt2", "f16", 5e-3), ("qwen3", "bf16", 0.05)])
def test_types_that_round(kind: str, type_: str, bound: float, tmp_path: Path) -> None:
    folder, file = written(kind, tmp_path, type_)
    config = AutoConfig.from_pretrained(folder)
    tensors = plan(StoredWeights(folder), config, family_of(config, ""), type_, "")
    assert 0 < distance(turned_back(folder, file, tensors, TOKENS), answer_of(folder, TOKENS)) < bound
    assert {tensor.type for tensor in tensors if len(tensor.shape) == 1} == {"f32"}
    assert type_ in {tensor.type for tensor in tensors}


def test_what_llamacpp_computes_otherwise_is_refused(tmp_path: Path) -> None:
    folder = model_folder("falcon 7b", tmp_path / "model")
    config = AutoConfig.from_pretrained(folder)
    config.alibi = True
    config.save_pretrained(folder)
    with pytest.raises(UserError, match="ALiBi"):
        export_gguf(folder, tmp_path / "out.gguf")
    config.model_type = "unheard_of"
    with pytest.raises(UserError, match="cannot be written as GGUF"):
        family_of(config, "")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_adapter_is_merged_first(tmp_path: Path) -> None:
    base = model_folder("llama", tmp_path / "base")
    adapter = chat_folders.adapter_folder("llama", tmp_path / "adapter", base, target=("q_proj", "down_proj"))
    plain, tuned = tmp_path / "plain.gguf", tmp_path / "tuned.gguf"
    export_gguf(base, plain, kind="f32")
    found = export_gguf(adapter, tuned, kind="f32")
    assert found is not None
    assert found.ok
    assert plain.read_bytes() != tuned.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "plain.gguf", "tuned.gguf"}


def test_a_result_that_differs_too_much_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder("llama", tmp_path / "model")
    with pytest.raises(UserError, match="the result is not the model"):
        export_gguf(folder, tmp_path / "out.gguf", kind="q8_0", tolerance=0.0)
    (tmp_path / "there.gguf").touch()
    with pytest.raises(UserError, match="already there"):
        export_gguf(folder, tmp_path / "there.gguf")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="llama-quantize"):
        export_gguf(folder, tmp_path / "out.gguf", kind="q4_k_m")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "there.gguf"}


def test_other_types_are_made_by_llamacpp_s_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the tool: it is given a finer file, where to write, and the type; and what it says when it fails."""
    tool = tmp_path / "bin" / "llama-quantize"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$3" > {tmp_path}/said\ncp "$1" "$2"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/bin:/usr/bin")
    folder = model_folder("llama", tmp_path / "model")
    found = export_gguf(folder, tmp_path / "out.gguf", kind="q4_k_m")
    assert found is not None
    assert (found.measure, found.ok) == ("perplexity", True)
    assert (tmp_path / "said").read_text() == "Q4_K_M\n"
    tool.write_text("#!/bin/sh\necho no such type >&2\nexit 1\n")
    with pytest.raises(UserError, match="no such type"):
        export_gguf(folder, tmp_path / "other.gguf", kind="q9")
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "said", "model", "out.gguf"}


def test_a_weight_too_large_for_f16_is_told(tmp_path: Path) -> None:
    folder = model_folder("llama", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][3, 3] = 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="too large for f16"):
        export_gguf(folder, tmp_path / "out.gguf", kind="f16")


def test_settings_stand_in_the_file(tmp_path: Path) -> None:
    import gguf

    _, file = written("llama, yarn", tmp_path)
    reader = gguf.GGUFReader(file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.architecture"] == "llama"
    assert said["llama.attention.head_count_kv"] == 2
    assert said["llama.rope.scaling.type"] == "yarn"
    assert said["llama.rope.scaling.factor"] == 4.0
    assert said["llama.rope.scaling.original_context_length"] == 128
    assert said["tokenizer.ggml.model"] == "gpt2"
    assert len(said["tokenizer.ggml.tokens"]) == 259
    assert said["tokenizer.ggml.eos_token_id"] == 2


def test_the_source_is_what_merge_would_write(tmp_path: Path) -> None:
    folder = model_folder("qwen3", tmp_path / "model")
    with ready(folder, tmp_path / "out") as model:
        assert model.folder == folder
        assert model.ends() == [2]
