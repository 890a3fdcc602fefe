"""Reward models, end to end: the folder is an ordinary one that scores alike in transformers and PEFT, and runs resume to the bit."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import luthier
from luthier.errors import Stopped, UserError
from luthier.models.adapters.format import is_adapter
from luthier.objectives.rewards import Answer, judge_of
from luthier.recipe.sections.rewards import Reward
from tests.e2e.interrupted import StopAt, steps
from tests.workspace import Workspace, weights_of

METHODS: dict[str, dict[str, Any]] = {
    "full": {"type": "full"},
    "head": {"type": "freeze", "layers": 0},
    "lora": {"type": "lora", "rank": 4},
    "ia3": {"type": "ia3"},
}


def rows() -> list[dict[str, Any]]:
    """Twelve pairs: the better answer counts, the worse one repeats itself."""
    return [
        {
            "prompt": f"Count to {n}.",
            "chosen": ", ".join(map(str, range(1, n + 1))),
            "rejected": " ".join(["one"] * n),
            "margin": 0.5,
        }
        for n in range(2, 14)
    ]


def space_of(folder: Path, method: str = "lora", **sections: Any) -> Workspace:
    train = {"max_steps": 6, "batch_size": 4, "learning_rate": 3e-3, "micro_batch_tokens": 128}
    given = {"train": train, "stage": "rm", "method": METHODS[method], "data": {"validation": 4}} | sections
    space = Workspace.make(folder, **given)
    (folder / "rows.json").write_text(json.dumps(rows()))
    return space


@pytest.mark.parametrize(
    ("method", "message"),
    [("prompt", "saves no head beside"), ("lora", "has no `score`: it was not trained to score texts")],
)
def test_what_has_no_head_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    space, overrides = space_of(tmp_path), [f"method={method}"]
    if method == "lora":
        talk = Workspace.make(tmp_path / "talk", rows=4, train={"max_steps": 1})
        written = luthier.train(talk.recipe, name="writes", progress=False)
        overrides = [f"model.adapter={written.path / 'final'}"]
    with pytest.raises(UserError, match=message):
        luthier.train(space.recipe, overrides=overrides, name="refused", progress=False)


def test_a_trained_reward_model_is_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = luthier.train(space_of(tmp_path, "head", train={"max_steps": 2}).recipe, progress=False)
    judge = judge_of([TypeAdapter(Reward).validate_python({"type": "model", "path": "first", "weight": 0.5})])
    question = {"role": "user", "content": "Count to 3."}
    verdict = judge([Answer((question,), "1, 2, 3")])
    [alone] = luthier.load(run).score([[question, {"role": "assistant", "content": "1, 2, 3"}]])
    assert verdict.total == pytest.approx([0.5 * alone])


@torch.no_grad()
def plain_rewards(folder: Path, base: Path, talks: list[list[dict[str, str]]]) -> Tensor:
    """What transformers and PEFT say of conversations, padded together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_adapter(folder):
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
            model = peft.PeftModel.from_pretrained(model, str(folder))
        else:
            model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.config.pad_token_id = model.config.pad_token_id or tokenizer.pad_token_id
    texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    rows = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt", add_special_tokens=False)
    found: Tensor = model.eval()(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, 0]
    return found


@pytest.mark.parametrize("method", [pytest.param(name, marks=[] if name == "lora" else [pytest.mark.slow]) for name in METHODS])
def test_it_learns_is_an_ordinary_folder_and_resumes_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.chdir(tmp_path)
    space = space_of(tmp_path, method)
    run = luthier.train(space.recipe, progress=False)
    first, *_, last = steps(run)
    assert last["loss"] < first["loss"]
    assert last["margin"] > first["margin"]
    with pytest.raises(Stopped):
        luthier.train(space.recipe, name="broken", callbacks=(StopAt(3),), progress=False)
    resumed = luthier.resume("broken", progress=False)
    assert [record["loss"] for record in steps(resumed)] == [record["loss"] for record in steps(run)]
    expected, found = weights_of(run.path / "final"), weights_of(resumed.path / "final")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    talks = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
        for row in rows()
        for side in ("chosen", "rejected")
    ]
    ours = luthier.load(run).score(talks)
    assert ours == pytest.approx(plain_rewards(run.path / "final", tmp_path / "model", talks).tolist(), abs=1e-4)
    measured = [record for record in run.metrics() if "eval_loss" in record][-1]
    assert 0 <= measured["eval_accuracy"] <= 1
    assert "eval_margin" in measured
