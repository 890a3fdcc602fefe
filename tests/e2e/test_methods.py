"""Each method in a whole run: train, stop, resume to the same bits, talk to a checkpoint while it goes on, merge or say why not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import luthier
from luthier.errors import Stopped, UserError
from luthier.export.merge import merge
from luthier.models.adapters.format import is_adapter
from luthier.runs.records import Callback, StepRecord
from tests.workspace import Workspace, weights_of

METHODS: dict[str, dict[str, Any]] = {
    "ia3": {"type": "ia3"},
    "prefix": {"type": "prefix", "pre_seq_len": 4, "projection_size": 16},
    "p_tuning": {"type": "p_tuning", "pre_seq_len": 4},
    "prompt": {"type": "prompt", "pre_seq_len": 4},
    "oft": {"type": "oft", "block_size": 16, "dropout": 0.1},
    "boft": {"type": "boft", "dropout": 0.1},
    "llama_adapter": {"type": "llama_adapter", "adapter_len": 4},
    "llama_pro": {"type": "llama_pro", "blocks": 1},
    "layernorm": {"type": "layernorm"},
}
RATES = {"llama_adapter": 1e-1}
"""Learning rates other than 1e-2: gates that begin closed let little of a gradient through."""
QUICK = ("prefix",)
MERGED = ("ia3", "oft", "boft", "layernorm")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in METHODS])
def test_a_run_of_each_method(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = Workspace.make(tmp_path, rows=12, method=METHODS[name], train={"learning_rate": RATES.get(name, 1e-2), "epochs": 2})
    answers: list[str] = []

    class Interrupted(Callback):
        """Asks the newest checkpoint a question while the run goes on, then stops it."""

        def on_save(self, step: int, folder: Path) -> None:
            answers.append(luthier.load("broken", checkpoint=step).chat("Count to 3.", max_new_tokens=4))

        def on_step(self, step: StepRecord) -> None:
            if step.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    straight = luthier.train(space.recipe, progress=False)
    losses = [record["loss"] for record in straight.metrics() if "loss" in record]
    assert len(losses) == 6
    assert sum(losses[3:]) < sum(losses[:3]), "the same rows, an epoch later"
    with pytest.raises(Stopped):
        luthier.train(space.recipe, name="broken", callbacks=(Interrupted(),), progress=False)
    assert answers
    resumed = luthier.resume("broken", progress=False)
    expected, found = weights_of(straight.path / "final"), weights_of(resumed.path / "final")
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    _leaves(name, resumed.path / "final", space.folder / "model", tmp_path / "merged")


@torch.no_grad()
def _leaves(name: str, final: Path, base: Path, merged: Path) -> None:
    """What the run made is what PEFT or transformers load, and it is merged where it can be."""
    tokens = torch.arange(5, 25)[None]
    talk = luthier.load(final if is_adapter(final) else "broken")
    assert isinstance(talk.chat("Count to 3.", max_new_tokens=4), str)
    plain = AutoModelForCausalLM.from_pretrained(base if is_adapter(final) else final)
    theirs = peft.PeftModel.from_pretrained(plain, str(final)).eval() if is_adapter(final) else plain
    logits = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -20:]
    if name in MERGED:
        merge("broken", merged)
        whole = AutoModelForCausalLM.from_pretrained(merged)
        torch.testing.assert_close(whole(input_ids=tokens).logits[0], logits, atol=1e-4, rtol=0)
    elif is_adapter(final):
        with pytest.raises(UserError, match="cannot be merged"):
            merge("broken", merged)
        assert not merged.exists()
