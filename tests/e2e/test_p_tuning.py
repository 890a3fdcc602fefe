"""P-tuning v2 as ChatGLM's recipe has it, on the shared fixture and medical questions: checkpoints answer while the run goes on."""

from __future__ import annotations

import io
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from sentencepiece import SentencePieceTrainer
from transformers import AutoModelForCausalLM

import luthier
from luthier.errors import Stopped
from luthier.models.hub import fetch
from luthier.runs.records import Callback, StepRecord
from tests.models.legacy.cases import copy_of, fixture

QUESTION = "高血压患者能吃党参吗？"
LENGTH = 16


def old_checkpoint(shared: Path, folder: Path) -> Path:
    """The fixture with a SentencePiece model of as many pieces as it has tokens: bytes, and the most frequent characters."""
    copy_of(fixture(shared, "chatglm3"), folder)
    text = (shared / "data/medical/zh_internal_medicine_3000.csv").read_text("utf-8")
    frequent = {letter for letter, _ in Counter(text).most_common(40)}
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter("".join(filter(frequent.__contains__, line)) for line in text.splitlines()), model_writer=model,
        vocab_size=320, model_type="bpe", byte_fallback=True, hard_vocab_limit=False, add_dummy_prefix=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}))
    return folder


def recipe(shared: Path, model: Path) -> dict[str, Any]:
    columns = {"instruction": "title", "output": "answer"}
    train = {"path": str(shared / "data/medical/zh_internal_medicine_3000.csv"), "format": "alpaca", "columns": columns}
    return {
        "name": "medical",
        "model": {"path": str(model)},
        "data": {"train": [train], "template": "chatglm3", "max_length": 128 - LENGTH},
        "stage": "sft",
        "method": {"type": "p_tuning", "pre_seq_len": LENGTH},
        "train": {"max_steps": 1000, "batch_size": 1, "learning_rate": 2e-2},
        "checkpoint": {"every": 500, "keep": 4},
        "report_to": [],
    }


@pytest.mark.slow
def test_checkpoints_answer_while_the_run_goes_on(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answers: dict[int, str] = {}

    class Asked(Callback):
        """Asks each new checkpoint; stops the run once, a little after the first."""

        def on_save(self, step: int, folder: Path) -> None:
            answers[step] = luthier.load("medical", checkpoint=step).chat(QUESTION, max_new_tokens=12)

        def on_step(self, step: StepRecord) -> None:
            if step.step == 510:
                os.kill(os.getpid(), signal.SIGTERM)

    model = old_checkpoint(shared, tmp_path / "chatglm3")
    with pytest.raises(Stopped):
        luthier.train(recipe(shared, model), callbacks=(Asked(),), progress=False)
    assert min(answers) == 500
    run = luthier.resume("medical", callbacks=(Asked(),), progress=False)
    assert max(answers) == 1000
    longer = luthier.resume("medical", overrides=["train.max_steps=1500"], callbacks=(Asked(),), progress=False)
    assert set(answers) >= {500, 1000, 1500}
    losses = [record["loss"] for record in longer.metrics() if "loss" in record]
    assert len(losses) == 1500
    assert sum(losses[-100:]) < 0.9 * sum(losses[:100])
    assert "padded, because each segment begins with its own prefix" in (run.path / "log" / "rank-0.txt").read_text()
    _is_read_by_peft(run, model)


@torch.no_grad()
def _is_read_by_peft(run: luthier.Run, model: Path) -> None:
    tokens = torch.arange(5, 45)[None]
    base = AutoModelForCausalLM.from_pretrained(fetch(str(model)))
    theirs = peft.PeftModel.from_pretrained(base, str(run.folder.checkpoint(500))).eval()
    ours = luthier.load(run, checkpoint=500).model
    from luthier.generation.cache import RowCache

    expected = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, -1]
    torch.testing.assert_close(RowCache(ours).add(tokens.tolist()), expected, atol=1e-4, rtol=0)
