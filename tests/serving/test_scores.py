"""Reward models and classifiers answer as `luthier.load` does, each at its own address."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import LlamaConfig, LlamaForSequenceClassification

from luthier.models.scoring import Classifier, RewardModel
from luthier.workshop import load
from tests.chat_folders import write_tokenizer
from tests.serving.conftest import Running

TALK = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
TEXTS = ["a text", "一段文字", "another, longer text"]


def scorer(folder: Path, **more: Any) -> Any:
    """A random model that scores texts."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=256, pad_token_id=0, max_position_embeddings=128, **shape, **more)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    write_tokenizer(folder)
    return load(folder)


def test_rewards(serving: Callable[..., Running], tmp_path: Path) -> None:
    judge = scorer(tmp_path, num_labels=1)
    assert isinstance(judge, RewardModel)
    server = serving(judge, name="judge")
    other = [*TALK[:1], {"role": "assistant", "content": "5"}]
    status, _, text = server.ask("POST", "/v1/score", {"model": "judge", "conversations": [TALK, other]})
    assert status == 200
    assert [row["score"] for row in json.loads(text)["data"]] == pytest.approx(judge.score([TALK, other]), abs=1e-6)
    for wrong in ([TALK[:1]], [[]], []):
        assert server.ask("POST", "/v1/score", {"model": "judge", "conversations": wrong})[0] == 400
    with pytest.raises(openai.BadRequestError, match="ask /v1/score"):
        server.client().chat.completions.create(model="judge", messages=TALK[:1])  # type: ignore[arg-type]
    assert server.ask("POST", "/v1/classify", {"model": "judge", "input": "a"})[0] == 400
    assert server.client().models.list().data[0].id == "judge"


def test_labels(serving: Callable[..., Running], tmp_path: Path) -> None:
    names = {0: "fruit", 1: "tool", 2: "动物"}
    kind = scorer(tmp_path, id2label=names, label2id={name: number for number, name in names.items()}, num_labels=3)
    assert isinstance(kind, Classifier)
    server = serving(kind, name="kind")
    status, _, text = server.ask("POST", "/v1/classify", {"model": "kind", "input": TEXTS})
    assert status == 200
    for row, said in zip(json.loads(text)["data"], kind.predict(TEXTS), strict=True):
        assert row["label"] == said.label
        assert row["scores"] == pytest.approx(said.scores, abs=1e-6)
    assert server.ask("POST", "/v1/classify", {"model": "kind", "input": ["a", " "]})[0] == 400
    for path, body in (("embeddings", {"input": "a"}), ("completions", {"prompt": "a"})):
        assert "ask /v1/classify" in server.ask("POST", f"/v1/{path}", {"model": "kind", **body})[2]
