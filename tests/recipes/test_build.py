"""The command that rebuilds the embedded model goes on where it was, and publishes an ordinary folder."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig


@pytest.fixture
def build(script, tmp_path, monkeypatch):
    module = script("build")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    commands: list[list[str]] = []
    monkeypatch.setattr(module, "run", lambda *command: commands.append([str(part) for part in command]))
    module.commands = commands
    monkeypatch.setattr(module, "HERE", tmp_path / "recipes/tiny")
    return module


@pytest.fixture
def small(tmp_path, build):
    """A folder like build/tiny/init, with a model of a few weights."""
    folder = tmp_path / build.BUILD / "init"
    folder.mkdir(parents=True)
    LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}\n")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder.parent / "ATTRIBUTION.md").write_text("thanks")
    return folder


def test_a_step_is_not_repeated(build, tmp_path):
    build.make("corpus.py", build.BUILD / "corpus.jsonl", "--text", "x")
    assert len(build.commands) == 1
    (tmp_path / build.BUILD).mkdir(parents=True)
    (tmp_path / build.BUILD / "corpus.jsonl").touch()
    build.make("corpus.py", build.BUILD / "corpus.jsonl", "--text", "x")
    assert len(build.commands) == 1


@pytest.mark.parametrize(("state", "command"), [(None, "train"), ("stopped", "resume"), ("running", "resume"), ("done", None)])
def test_a_training_is_started_resumed_or_left(build, tmp_path, state, command):
    folder = tmp_path / build.BUILD / "runs/chat"
    if state:
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(json.dumps({"state": state}))
    assert build.train("chat", ["train.epochs=1"]) == build.BUILD / "runs/chat/final"
    assert [words[1] for words in build.commands] == ([command] if command else [])
    assert (command != "train") or "train.epochs=1" in build.commands[0]


def test_random_weights_depend_on_the_seed_alone(build, small):
    build.initialise(small, seed=3)
    first = (small / "model.safetensors").read_bytes()
    build.initialise(small, seed=4)
    assert (small / "model.safetensors").read_bytes() == first, "a result that is there is kept"
    (small / "model.safetensors").unlink()
    build.initialise(small, seed=3)
    assert (small / "model.safetensors").read_bytes() == first


def test_published_folder_is_the_trained_model_in_bfloat16(build, small, tmp_path):
    build.initialise(small)
    build.publish(small, tmp_path / "package")
    trained = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
    published = AutoModelForCausalLM.from_pretrained(tmp_path / "package")
    assert published.dtype == torch.bfloat16
    for (name, expected), found in zip(trained.named_parameters(), published.parameters(), strict=True):
        assert torch.equal(expected.bfloat16(), found), name
    assert {file.name for file in (tmp_path / "package").iterdir()} >= {"config.json", "chat_template.jinja", "ATTRIBUTION.md"}


def test_a_model_that_is_too_large_is_refused(build, small, tmp_path, monkeypatch):
    build.initialise(small)
    monkeypatch.setattr(build, "MAX_BYTES", 1000)
    with pytest.raises(SystemExit, match="more than 1000"):
        build.publish(small, tmp_path / "package")
