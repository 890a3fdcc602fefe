"""P-tuning v2 as ChatGLM3's recipe has it, on its fixture and on medical questions: checkpoints answer while the run goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import luthier
from luthier.errors import Stopped
from luthier.generation.cache import RowCache
from luthier.models.hub import fetch
from luthier.models.legacy.chatglm import OWN_VOCABULARY
from luthier.runs.records import Callback, StepRecord
from tests.models.legacy.cases import copy_of, fixture

QUESTION = "高血压患者能吃党参吗？"
LENGTH = 16


def old_checkpoint(shared: Path, folder: Path) -> Path:
    """The fixture with ChatGLM3's own tokenizer, and embeddings and head of as many rows as that has; new rows are random."""
    copy_of(fixture(shared, "chatglm3"), folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(shared / "data/tokenizers/chatglm3" / name, folder / name)
    weights, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in ("transformer.embedding.word_embeddings.weight", "transformer.output_layer.weight"):
        rows, width = weights[name].shape
        new = torch.randn(OWN_VOCABULARY - rows, width, generator=generator) * weights[name].std()
        weights[name] = torch.cat([weights[name], new])
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"padded_vocab_size": OWN_VOCABULARY}))
    return folder


def recipe(shared: Path, model: Path) -> dict[str, Any]:
    columns = {"instruction": "title", "output": "answer"}
    rows = {"path": str(shared / "data/medical/zh_internal_medicine_3000.csv"), "format": "alpaca", "columns": columns}
    return {
        "name": "medical",
        "model": {"path": str(model)},
        "data": {"train": [rows], "template": "chatglm3", "max_length": 40},
        "stage": "sft",
        "method": {"type": "p_tuning", "pre_seq_len": LENGTH},
        "train": {"max_steps": 1000, "batch_size": 1, "learning_rate": 2e-2},
        "checkpoint": {"every": 500, "keep": 3},
        "report_to": [],
    }


def ask(step: int) -> str:
    """The answer of a checkpoint, from another process."""
    asked = ("chat", "medical", "--checkpoint", str(step), "--prompt", QUESTION, "--max-new-tokens", "8")
    return subprocess.run(
        [sys.executable, "-m", "luthier", *asked], capture_output=True, text=True, timeout=120, check=True
    ).stdout.removesuffix("\n")


class Asked(Callback):
    """Asks each new checkpoint while the run goes on, and interrupts the run once, a little after the first."""

    def __init__(self) -> None:
        self.answers: dict[int, str] = {}

    def on_save(self, step: int, folder: Path) -> None:
        if step % 500 == 0:
            self.answers[step] = ask(step)

    def on_step(self, step: StepRecord) -> None:
        if step.step == 510:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_checkpoints_answer_while_the_run_goes_on(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, asked = old_checkpoint(shared, tmp_path / "chatglm3-6b"), Asked()
    with pytest.raises(Stopped):
        luthier.train(recipe(shared, model), callbacks=(asked,), progress=False)
    run = luthier.resume("medical", callbacks=(asked,), progress=False)
    assert list(asked.answers) == [500, 1000]
    for step, answer in asked.answers.items():
        assert answer == luthier.load(run, checkpoint=step).chat(QUESTION, max_new_tokens=8)
    assert {500, 1000} <= set(run.folder.checkpoints())
    losses = [record["loss"] for record in run.metrics() if "loss" in record]
    assert len(losses) == 1000
    assert sum(losses[-100:]) < 0.95 * sum(losses[:100])  # 11.4 to 10.4; a random model that knows nothing has 11.1
    assert "padded, because each segment begins with its own prefix" in (run.path / "log" / "rank-0.txt").read_text()
    is_read_by_peft(run, model)


@torch.no_grad()
def is_read_by_peft(run: luthier.Run, model: Path) -> None:
    tokens = torch.arange(5, 45)[None]
    base = AutoModelForCausalLM.from_pretrained(fetch(str(model)))
    theirs = peft.PeftModel.from_pretrained(base, str(run.folder.checkpoint(500))).eval()
    expected = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, -1]
    ours = RowCache(luthier.load(run, checkpoint=500).model).add(tokens.tolist())
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
