"""Each member of the LoRA family: trains, is stopped and resumed to the same bits, talks, loads in plain PEFT, continues, and merges."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import luthier
from luthier.errors import Stopped
from luthier.export.merge import merge
from luthier.runs.records import Callback, StepRecord
from luthier.workshop import Run
from tests.workspace import Workspace, weights_of

VARIANTS: dict[str, tuple[str, ...]] = {
    "pissa": ("method.init=pissa", "method.dropout=0"),
    "pissa, fast, DoRA": ("method.init=pissa_niter_4", "method.dropout=0", "method.dora=true"),
    "olora": ("method.init=olora", "method.dropout=0", "method.rslora=true"),
    "eva": ("method.init=eva",),
    "lora+": ("method.loraplus_ratio=8",),
    "patterns": ("method.target=.*(q|down)_proj", "method.rank_pattern={down_proj: 2}", "method.alpha_pattern={q_proj: 3}"),
    "one layer": ("method.layers=[1]", "method.exclude=[up_proj]"),
    "adalora": ("method={type: adalora, rank: 2, start_rank: 4, every: 1}", "train.learning_rate=2e-2"),
    "vera": ("method={type: vera, rank: 16}", "train.learning_rate=2e-2"),
    "new tokens": ("model.new_tokens=[<count>]", "method.trainable_tokens=[Hello]", "data.replace={Count to: <count>}"),
}
QUICK = ("pissa",)
"""Those that `make test` tries."""
TOKENS = torch.arange(3, 40)[None]


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("luthier.models.adapters.eva.BATCH_TOKENS", 200)
    return Workspace.make(tmp_path, train={"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "micro_batch_tokens": 128})


class Stop(Callback):
    """Interrupts the process after a step."""

    def on_step(self, step: StepRecord) -> None:
        if step.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def train(space: Workspace, *overrides: str, name: str, callbacks: tuple[Callback, ...] = ()) -> Run:
    return luthier.train(space.recipe, overrides=overrides, name=name, callbacks=callbacks, progress=False)


def losses(run: Run) -> list[float]:
    return [record["loss"] for record in run.metrics() if "loss" in record]


@pytest.mark.parametrize("variant", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS])
def test_it_trains_resumes_talks_merges_and_loads_in_peft(variant: str, space: Workspace, tmp_path: Path) -> None:
    overrides = VARIANTS[variant]
    straight = train(space, *overrides, name="straight")
    assert losses(straight)[-1] < losses(straight)[0]
    with pytest.raises(Stopped):
        train(space, *overrides, name="broken", callbacks=(Stop(),))
    resumed = luthier.resume("broken", progress=False)
    expected, found = weights_of(straight.path / "final"), weights_of(resumed.path / "final")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    tuned = luthier.load(straight)
    assert isinstance(tuned.chat("Count to 3.", max_new_tokens=4), str)
    folder = merge("straight", tmp_path / "merged")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits = tuned.model(input_ids=TOKENS, use_cache=False).logits
        merged = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.allclose(merged(input_ids=TOKENS).logits, logits, atol=1e-4)
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        base.resize_token_embeddings(max(len(AutoTokenizer.from_pretrained(straight.path / "final")), base.config.vocab_size))
        theirs = peft.PeftModel.from_pretrained(base, str(straight.path / "final"))
        assert torch.allclose(theirs(input_ids=TOKENS).logits, logits, atol=1e-4)

    again = train(space, f"model.adapter={straight.path / 'final'}", *overrides, name="again")
    assert losses(again)[0] < losses(straight)[0]


@pytest.mark.slow
def test_a_new_token_is_one_token_from_the_data_to_the_answer(space: Workspace, tmp_path: Path) -> None:
    run = train(space, *VARIANTS["new tokens"], name="tokens")
    for folder in (run.path / "final", merge("tokens", tmp_path / "merged")):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        [number] = tokenizer("<count>", add_special_tokens=False).input_ids
        assert number == len(tokenizer) - 1
        assert tokenizer.decode([number], skip_special_tokens=True) == "<count>"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.vocab_size == number + 1
    full = train(space, "method=full", "model.new_tokens=[<count>]", name="full")
    assert AutoModelForCausalLM.from_pretrained(full.path / "final").config.vocab_size == number + 1
