"""Model folders load whole or not at all, and every way of being broken has its one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import UserError
from luthier.models.loading import load_model
from luthier.recipe.schema import Model, Quantization
from tests.families import MATRIX, build, save

CPU = torch.device("cpu")


def load(folder: Path, **fields: object):  # type: ignore[no-untyped-def]
    return load_model(Model(path=str(folder), **fields), dtype=torch.float32, device=CPU)


ATTENTION = {"gemma2": "eager", "bloom": "eager", "falcon": "sdpa"}
"""What `auto` is on a CPU where it is not our own: no SDPA form, or a family with a closed list of attention classes."""


@pytest.mark.parametrize("family", [*MATRIX, "opt", "falcon", "phi"])
def test_a_saved_model_loads_as_it_was(family: str, tmp_path: Path) -> None:
    model = load(save(family, tmp_path))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), build(family).parameters(), strict=True))
    assert not model.training
    assert model.config.use_cache is False
    assert model.config._attn_implementation == ATTENTION.get(family, "luthier_segments")


def test_dtype_and_attention_are_the_recipe_s(tmp_path: Path) -> None:
    save("llama", tmp_path)
    model = load_model(Model(path=str(tmp_path), attention="eager"), dtype=torch.bfloat16, device=CPU)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def broken(folder: Path, how: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    if how == "no config":
        config.unlink()
    elif how == "torn config":
        config.write_text('{"model_type": "llama", ')
    elif how == "not a config":
        config.write_text("[1, 2]")
    elif how == "unknown type":
        config.write_text(json.dumps({"model_type": "moss"}))
    elif how == "not a language model":
        config.write_text(json.dumps({"model_type": "t5"}))
    elif how == "no weights":
        weights.unlink()
    elif how == "pickled weights":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "torn weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "a tensor missing":
        tensors = load_file(weights)
        del tensors["model.norm.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif how == "another shape":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 300}))
    elif how == "a shard missing":
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no config", "`config.json` is missing"),
        ("torn config", "not a usable model config"),
        ("not a config", "not a usable model config"),
        ("unknown type", "transformers cannot read this config of type `moss`"),
        ("not a language model", "`t5` is not a causal language model"),
        ("no weights", "no safetensors weights here"),
        ("pickled weights", "Luthier never unpickles"),
        ("torn weights", "cannot be read"),
        ("a tensor missing", "such as `model.norm.weight`"),
        ("another shape", "missing or of another shape"),
        ("a shard missing", "1 of 1 weight files are missing, such as `model-1.safetensors`"),
    ],
)
def test_broken_folders_are_named_in_one_line(how: str, message: str, tmp_path: Path) -> None:
    broken(save("llama", tmp_path), how)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_choices_that_cannot_be_had_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("gemma2", tmp_path)
    with pytest.raises(UserError, match="has no SDPA attention"):
        load(tmp_path, attention="sdpa")
    with pytest.raises(UserError, match="needs the package `flash-attn`"):
        load(tmp_path, attention="flash_attention_2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"luthier\[quantize\]"):
        load(tmp_path, quantization=Quantization())
