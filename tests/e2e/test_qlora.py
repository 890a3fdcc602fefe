"""QLoRA as a user runs it: train, stop, resume to the same bits, talk, merge in two ways; and how near that comes to LoRA."""

from __future__ import annotations

import importlib
import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import luthier
from luthier.errors import Stopped
from luthier.export.merge import merge
from luthier.recipe.load import load_recipe
from tests.e2e.test_train import Each, step_losses, train
from tests.workspace import Workspace, weights_of

pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize(
    "said", ["{bits: 4}", *(pytest.param(said, marks=pytest.mark.slow) for said in ("{bits: 8}", "{method: hqq}"))]
)
def test_a_stopped_run_ends_in_the_same_bits(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "hqq" in said:
        pytest.importorskip("hqq")
    monkeypatch.chdir(tmp_path)
    space = Workspace.make(tmp_path)
    quantised = f"model.quantization={said}"

    def interrupt(step: object) -> None:
        if getattr(step, "step", 0) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    straight = train(space, quantised)
    assert step_losses(straight)[-1] < step_losses(straight)[0]
    with pytest.raises(Stopped):
        train(space, quantised, name="broken", callbacks=(Each(interrupt),))
    resumed = luthier.resume("broken", progress=False)
    expected, found = weights_of(straight.path / "final"), weights_of(resumed.path / "final")
    assert all("lora" in name for name in found), "nothing of the base is saved"
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert load_recipe(straight.path / "recipe.yaml").model.quantization is not None
    assert luthier.load("first").chat("Count to 3.", max_new_tokens=2) is not None


VARIANTS: dict[str, tuple[str, ...]] = {
    "dora": ("method.dora=true",),
    "rslora": ("method.rslora=true", "method.loraplus_ratio=4"),
    "pissa": ("method.init=pissa", "method.dropout=0"),
    "olora": ("method.init=olora", "method.dropout=0"),
    "eva": ("method.init=eva",),
    "loftq": ("method.init=loftq",),
    "adalora": ("method={type: adalora, rank: 2, start_rank: 4, every: 1}", "train.learning_rate=2e-2"),
    "vera": ("method={type: vera, rank: 16}", "train.learning_rate=2e-2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_lora_runs_on_four_bits(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns, is stopped and resumed to the same bits, talks, is continued, and merged it is the model that was trained."""
    monkeypatch.chdir(tmp_path)
    space = Workspace.make(tmp_path)
    overrides = ("model.quantization={bits: 4}", *VARIANTS[variant])

    def interrupt(step: object) -> None:
        if getattr(step, "step", 0) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    straight = train(space, *overrides)
    assert step_losses(straight)[-1] < step_losses(straight)[0]
    with pytest.raises(Stopped):
        train(space, *overrides, name="broken", callbacks=(Each(interrupt),))
    resumed = luthier.resume("broken", progress=False)
    expected, found = weights_of(straight.path / "final"), weights_of(resumed.path / "final")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    tuned = luthier.load(straight)
    assert isinstance(tuned.chat("Count to 3.", max_new_tokens=2), str)
    folder = merge("first", tmp_path / "merged", onto="quantised")
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        logits = tuned.model(input_ids=tokens, use_cache=False).logits
        whole = AutoModelForCausalLM.from_pretrained(folder)(input_ids=tokens).logits
    assert (whole - logits).abs().max() <= 1e-4 * logits.abs().max()

    again = train(space, f"model.adapter={straight.path / 'final'}", *overrides, name="again")
    assert step_losses(again)[0] < step_losses(straight)[0]


@pytest.mark.slow
def test_real_conversations_are_learnt_as_by_lora_and_merged_models_measure_alike(
    shared: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(root / "benchmarks")
    script = importlib.import_module("quantised")
    plain, four = script.measure(script.DATA, ["float32", "nf4"], steps=50, folder=tmp_path)
    assert four.memory <= 0.32
    assert four.loss == pytest.approx(plain.loss, rel=0.02)
    assert four.adapter < four.before * 0.9, "it has learnt"
    assert four.adapter == pytest.approx(plain.adapter, rel=0.05)
    assert four.rounded == pytest.approx(four.adapter, rel=1e-3), "the model as trained"
    assert four.merged == pytest.approx(four.adapter, rel=0.05)
