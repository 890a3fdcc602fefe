"""The command that rebuilds the embedded model goes on where it was, and publishes an ordinary folder."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from luthier.recipe.load import load_recipe


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
    folder = tmp_path / build.WORK / "init"
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
    build.make("corpus.py", build.WORK / "corpus.jsonl", "--text", "x")
    assert len(build.commands) == 1
    (tmp_path / build.WORK).mkdir(parents=True)
    (tmp_path / build.WORK / "corpus.jsonl").touch()
    build.make("corpus.py", build.WORK / "corpus.jsonl", "--text", "x")
    assert len(build.commands) == 1


@pytest.mark.parametrize(("state", "command"), [(None, "train"), ("stopped", "resume"), ("running", "resume"), ("done", None)])
def test_a_training_is_started_resumed_or_left(build, tmp_path, state, command):
    folder = tmp_path / build.WORK / "runs/chat"
    if state:
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(json.dumps({"state": state}))
    assert build.train("chat", build.WORK, ["train.epochs=1"]) == build.WORK / "runs/chat/final"
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


@pytest.fixture
def trained(build, small):
    """A folder like build/tiny, as if `small` had come out of both trainings."""
    build.initialise(small)
    final = small.parent / "runs/chat/final"
    final.mkdir(parents=True)
    (final / "model.safetensors").write_bytes((small / "model.safetensors").read_bytes())
    return small.parent


def test_published_folder_is_the_trained_model_in_bfloat16(build, small, trained, tmp_path):
    build.publish(trained, tmp_path / "package")
    expected = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
    published = AutoModelForCausalLM.from_pretrained(tmp_path / "package")
    assert published.dtype == torch.bfloat16
    for (name, weight), found in zip(expected.named_parameters(), published.parameters(), strict=True):
        assert torch.equal(weight.bfloat16(), found), name
    assert {file.name for file in (tmp_path / "package").iterdir()} >= {"config.json", "chat_template.jinja", "ATTRIBUTION.md"}


def test_a_model_that_is_too_large_is_refused(build, trained, tmp_path, monkeypatch):
    build.publish(trained, tmp_path / "package")
    build.weigh(tmp_path / "package")
    monkeypatch.setattr(build, "MAX_BYTES", 1000)
    with pytest.raises(SystemExit, match="more than 1000"):
        build.weigh(tmp_path / "package")


@pytest.mark.parametrize("recipe", ["pretrain", "chat"])
def test_another_folder_is_another_place_for_every_file(build, root, recipe, tmp_path):
    assert build.places(recipe, build.WORK) == []
    moved = load_recipe(root / f"recipes/tiny/{recipe}.yaml", build.places(recipe, tmp_path / "other"))
    places = [moved.output, moved.model.path, moved.data.train[0].path]
    assert all(place.startswith(str(tmp_path / "other/")) for place in places)


@pytest.mark.slow
def test_two_builds_give_the_same_bytes(script, root, shared, tmp_path, monkeypatch):
    """Everything but the length of the trainings is as in a real build, which takes an hour: three steps of each training."""
    build = script("build")
    monkeypatch.setattr(build, "describe", lambda work, folder: None)
    monkeypatch.syspath_prepend(str(root / "recipes/tiny"))
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    text = str(shared / "data/pretrain/full")
    short = [word for recipe in ("--pretrain", "--chat") for word in (recipe, "train.max_steps=3")]
    digests = []
    for name in ("one", "two"):
        build.main(["--text", text, "--work", str(tmp_path / name), "--out", str(tmp_path / name / "tiny"), *short])
        files = [*(tmp_path / name / "tiny").iterdir(), *(tmp_path / name).glob("*.jsonl")]
        digests.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    assert "model.safetensors" in digests[0]
    assert digests[0] == digests[1]
