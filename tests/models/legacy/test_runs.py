"""An old checkpoint in a recipe: trained, talked to, and written back as what it was."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceTrainer

import luthier
import luthier.models
from luthier.export.merge import merge
from luthier.models.adapters.experts import expert_layers
from luthier.models.hub import fetch
from luthier.models.methods import load_adapter
from tests.models.legacy.cases import copy_of, fixture
from tests.workspace import alpaca_rows


def write_tokenizer(folder: Path) -> None:
    """A SentencePiece model of 320 pieces, as many as the fixtures have tokens."""
    model = io.BytesIO()
    text = [f"{row['instruction']} {row['output']} User Assistant reserved" for row in alpaca_rows(60)]
    SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=320, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, add_dummy_prefix=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BaichuanTokenizer", "add_bos_token": False}))


def recipe_for(source: Path, name: str = "old", *, steps: int = 6, **sections: Any) -> dict[str, Any]:
    """A recipe for the checkpoint in `source`, with rows beside it."""
    (source.parent / "rows.json").write_text(json.dumps(alpaca_rows(12)))
    return {
        "name": name,
        "model": {"path": str(source)},
        "data": {"train": [str(source.parent / "rows.json")], "template": "baichuan2", "max_length": 96},
        "stage": "sft",
        "method": {"type": "lora", "rank": 4, "target": ["W_pack"]},
        "train": {"max_steps": steps, "batch_size": 4, "learning_rate": 1e-2, "schedule": "constant"},
        "report_to": [],
    } | sections


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Baichuan2 with a tokenizer; runs go beside it."""
    monkeypatch.chdir(tmp_path)
    folder = copy_of(fixture(shared, request.param), tmp_path / "Baichuan2")
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("checkpoint", ["baichuan2_7b", "baichuan2_13b"], indirect=True)
def test_train_chat_and_export(checkpoint: Path, tmp_path: Path) -> None:
    source, run = checkpoint, luthier.train(recipe_for(checkpoint))
    losses = [json.loads(line)["loss"] for line in (run.path / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert losses[-1] < losses[0]
    assert isinstance(luthier.load(run).chat("Count to 3.", max_new_tokens=4), str)
    out = merge(run.path, tmp_path / "out", original_names=True)
    start, end = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert {key: value.shape for key, value in start.items()} == {key: value.shape for key, value in end.items()}
    changed = {key.rpartition("self_attn.")[2] for key in start if not start[key].equal(end[key])}
    assert changed == {"W_pack.weight"}
    assert (out / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    assert fetch(str(out)) != out  # and it is an old checkpoint again


@pytest.mark.parametrize("checkpoint", ["baichuan2_7b"], indirect=True)
def test_a_normalised_head_that_learns_is_resumed_bit_for_bit(checkpoint: Path) -> None:
    full = {"method": {"type": "full"}, "checkpoint": {"every": 2, "keep": 3}}
    straight = luthier.train(recipe_for(checkpoint, "straight", steps=4, **full))
    resumed = luthier.resume(
        luthier.train(recipe_for(checkpoint, "resumed", steps=2, **full)), overrides=["train.max_steps=4"], progress=False
    )
    for file in ("model.safetensors", "luthier/head.safetensors"):
        ours, theirs = (load_file(run.path / "final" / file) for run in (straight, resumed))
        assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.parametrize("checkpoint", ["deepseek_moe"], indirect=True)
def test_experts_by_their_old_names_are_written_back_one_by_one(checkpoint: Path, tmp_path: Path) -> None:
    """Adapters on fused experts, named as the checkpoint named them; what comes out is the checkpoint plus each expert's update."""
    method = {"type": "lora", "rank": 4, "target": ["gate_proj", "up_proj"], "exclude": ["shared_experts.gate_proj"]}
    run = luthier.train(recipe_for(checkpoint, steps=2, method=method))
    out = merge(run.path, tmp_path / "out", original_names=True)
    start, end = load_file(checkpoint / "model.safetensors"), load_file(out / "model.safetensors")
    assert start.keys() == end.keys()
    changed = {key.removesuffix(".weight").rpartition(".")[2] for key in start if not start[key].equal(end[key])}
    assert changed == {"gate_proj", "up_proj"}
    base = luthier.models.load(str(checkpoint))
    load_adapter(base, run.path / "final")
    name, layer = next(iter(expert_layers(base).items()))
    fused = layer.effective_weights()["gate_up_proj"]
    for expert in range(len(fused)):
        halves = [end[f"{name}.{expert}.{part}.weight"] for part in ("gate_proj", "up_proj")]
        torch.testing.assert_close(torch.cat(halves), fused[expert], atol=1e-6, rtol=1e-5)
