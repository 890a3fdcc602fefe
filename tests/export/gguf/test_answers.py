"""The same answer, greedily, by Luthier, by plain transformers on the merged folder, and by llama.cpp on the GGUF file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import luthier
from luthier.export.check import TEXT, perplexity
from luthier.export.gguf.export import export_gguf
from luthier.export.merge import merge
from luthier.models.hub import fetch
from tests import chat_folders
from tests.export.gguf.models import model_folder

QUESTIONS = ("你是谁？", "What is 2 + 3?", "Tell me something about the sea.", "写一句话。")
NEAR = 1e-3
"""Two logits this near may change places by rounding."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp is not here: pip install 'luthier[llamacpp]'"
    ),
]


def adapter_of_tiny(folder: Path) -> Path:
    """A small adapter on the embedded model."""
    from luthier.models.adapters.config import AdapterConfig
    from luthier.models.adapters.format import write_adapter
    from luthier.models.adapters.insert import insert_adapter
    from luthier.models.loading import load_as_stored

    model = load_as_stored(fetch("tiny")).float()
    model.config.name_or_path = "tiny"
    insert_adapter(model, AdapterConfig(rank=4, alpha=4), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.01
    write_adapter(folder, model)
    return folder


@pytest.mark.parametrize(("kind", "bound"), [("f32", 1e-3), ("q8_0", 0.05)])
def test_three_engines_answer_alike(kind: str, bound: float, tmp_path: Path) -> None:
    from luthier.export.gguf.llamacpp import LlamaCpp

    adapter = adapter_of_tiny(tmp_path / "adapter")
    merged = merge(adapter, tmp_path / "merged", dtype="float32")
    file = tmp_path / "tiny.gguf"
    export_gguf(adapter, file, kind=kind)
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    ours = luthier.load(merged)
    with LlamaCpp(file, length=512) as engine:
        for question in QUESTIONS:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
            )
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            assert engine.tokens(prompt) == ids[0].tolist()
            with torch.no_grad():
                whole = plain.generate(ids, max_new_tokens=40, do_sample=False)[0]
                forced = plain(whole[None]).logits[0]
            answer = [token for token in whole[ids.shape[1] :].tolist() if token != 2]
            assert ours.chat(question, max_new_tokens=40) == tokenizer.decode(answer).strip()
            theirs = engine.logits(whole)
            assert (theirs - forced).abs().max() <= bound * forced.abs().max()
            if kind == "f32":
                assert (
                    engine.greedy(ids[0].tolist(), len(answer), [2])[: steady(forced[ids.shape[1] - 1 :])]
                    == (answer[: steady(forced[ids.shape[1] - 1 :])])
                )
        tokens = tokenizer(TEXT, return_tensors="pt").input_ids[0][:400]
        with torch.no_grad():
            expected = perplexity(plain(tokens[None]).logits[0], tokens)
        assert perplexity(engine.logits(tokens), tokens) == pytest.approx(expected, rel=0.01)


def steady(logits: torch.Tensor) -> int:
    """How many tokens come before the first near-tie."""
    best = logits.topk(2).values
    near = (best[:, 0] - best[:, 1] < NEAR).nonzero().flatten().tolist()
    return near[0] if near else len(logits)


def test_the_template_in_the_file_is_talked_with(tmp_path: Path) -> None:
    """llama.cpp's own chat, with nothing but the file: the same conversation, ended by the same token."""
    import llama_cpp

    export_gguf("tiny", tmp_path / "tiny.gguf", kind="f32", check=False)
    engine = llama_cpp.Llama(str(tmp_path / "tiny.gguf"), n_ctx=512, n_threads=1, type_k=0, type_v=0, verbose=False)
    ours = luthier.load("tiny")
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        said = engine.create_chat_completion(messages, temperature=0, max_tokens=60, repeat_penalty=1.0)["choices"][0]
        assert said["finish_reason"] == "stop"
        assert said["message"]["content"].strip() == ours.chat(question, max_new_tokens=60).strip()


def test_llamacpp_takes_the_adapter_by_itself(tmp_path: Path) -> None:
    from luthier.export.adapter import for_llamacpp
    from luthier.export.gguf.llamacpp import LlamaCpp

    base = model_folder("llama", tmp_path / "base")
    adapter = chat_folders.adapter_folder("llama", tmp_path / "adapter", base, rslora=True)
    export_gguf(base, tmp_path / "base.gguf", kind="f32", check=False)
    export_gguf(adapter, tmp_path / "merged.gguf", kind="f32", check=False)
    for_llamacpp(adapter, tmp_path / "lora.gguf")
    tokens = torch.arange(3, 40)
    with LlamaCpp(tmp_path / "merged.gguf", length=64) as engine:
        expected = engine.logits(tokens)
    with LlamaCpp(tmp_path / "base.gguf", length=64) as engine:
        assert (engine.logits(tokens) - expected).abs().max() > 0.05
    with LlamaCpp(tmp_path / "base.gguf", length=64, lora=tmp_path / "lora.gguf") as engine:
        assert (engine.logits(tokens) - expected).abs().max() <= 1e-3 * expected.abs().max()
