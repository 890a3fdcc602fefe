"""An old checkpoint in a recipe: trained, talked to, and written back as what it was."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from sentencepiece import SentencePieceTrainer

import luthier
from luthier.export.merge import merge
from luthier.models.hub import fetch
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


@pytest.mark.parametrize("name", ["baichuan2_7b", "baichuan2_13b"])
def test_train_chat_and_export(name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = copy_of(fixture(shared, name), tmp_path / "Baichuan2")
    write_tokenizer(source)
    (tmp_path / "rows.json").write_text(json.dumps(alpaca_rows(12)))
    recipe: dict[str, Any] = {
        "name": "old",
        "model": {"path": str(source)},
        "data": {"train": [str(tmp_path / "rows.json")], "template": "baichuan2", "max_length": 96},
        "stage": "sft",
        "method": {"type": "lora", "rank": 4, "target": ["W_pack"]},
        "train": {"max_steps": 6, "batch_size": 4, "learning_rate": 1e-2},
        "report_to": [],
    }
    run = luthier.train(recipe)
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
