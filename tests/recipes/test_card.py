"""The card of the embedded model says what was measured, and the measures measure."""

from __future__ import annotations

import hashlib
import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch


@pytest.fixture(scope="module")
def folder(root):
    return root / "src/luthier/models/tiny"


@pytest.fixture(scope="module")
def record(folder):
    return json.loads((folder / "build.json").read_text("utf-8"))


def test_every_number_of_the_card_comes_from_the_record(script, folder, record):
    assert (folder / "README.md").read_text("utf-8") == script("card").card(record)


def test_the_record_is_of_these_files(root, folder, record):
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors"):
        assert record["sha256"][name] == hashlib.sha256((folder / name).read_bytes()).hexdigest(), name
    exam = (root / "recipes/tiny/exam.jsonl").read_bytes()
    assert record["sha256"]["exam.jsonl"] == hashlib.sha256(exam).hexdigest()


def test_curves_are_a_small_picture(folder):
    picture = folder / "loss.svg"
    assert picture.stat().st_size < 60_000
    lines = ElementTree.parse(picture).getroot().findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2


def test_dots_lie_where_their_step_was(script):
    curves = script("curves")
    records = [{"loss": 2.0, "tokens": 500_000}, {"loss": 1.0, "tokens": 500_000}, {"eval_loss": 1.5}]
    assert curves.trained(records) == [(0.5, 2.0), (1.0, 1.0)]
    assert curves.held_out(records) == [(1.0, 1.5)]


def test_perplexity_of_a_model_that_knows_nothing(script, folder, tmp_path):
    """Zero weights make every token equally likely: perplexity is the vocabulary, bits per byte follow from the bytes."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path)
    text = "Once upon a time. 从前有一只猫。 " * 60
    found = script("perplexity").measure(tmp_path, [{"language": "en", "text": text}])["en"]
    assert found["perplexity"] == pytest.approx(4096, rel=1e-3)
    ids = tokenizer(text)["input_ids"]
    windows = -(-len(ids) // 512)
    assert (found["documents"], found["tokens"]) == (1, len(ids) - windows)
    assert found["bits_per_byte"] == pytest.approx(math.log2(4096) * len(ids) / len(text.encode()), rel=0.02)
