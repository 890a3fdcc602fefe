"""Few bits: loaded again by transformers, near enough; what cannot be done is said."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier import UserError
from luthier.export.quantize import calibration, quantize
from luthier.export.source import ready
from tests.chat_folders import model_folder
from tests.workspace import Workspace


@pytest.mark.parametrize("method", ["nf4", "int8", "torchao-int8", "torchao-int4"])
def test_a_model_in_few_bits_is_loaded_again(method: Any, tmp_path: Path) -> None:
    folder = model_folder("llama", tmp_path / "model")
    found = quantize(folder, tmp_path / "out", method=method)
    assert 0 < found.value <= found.tolerance
    weights = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert weights < 0.8 * (folder / "model.safetensors").stat().st_size


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package `gptqmodel`"):
        quantize("tiny", tmp_path / "out", method="gptq")


def test_too_large_a_difference_leaves_nothing(tmp_path: Path) -> None:
    folder = model_folder("llama", tmp_path / "model")
    with pytest.raises(UserError, match="the result is not the model"):
        quantize(folder, tmp_path / "out", method="nf4", tolerance=0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_gptq_is_shown_texts_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package itself: what it would be given, and that a model without a run has no texts."""
    shown: list[dict[str, Any]] = []

    class Model:
        @staticmethod
        def load(folder: str, settings: dict[str, Any]) -> Model:
            return Model()

        def quantize(self, texts: list[dict[str, Any]], batch_size: int) -> None:
            shown.extend(texts)

        def save(self, out: str) -> None:
            raise RuntimeError("no GPU")

    library = types.SimpleNamespace(GPTQModel=Model, QuantizeConfig=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "gptqmodel", library)
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: real("json") if name == "gptqmodel" else real(name))
    folder = model_folder("llama", tmp_path / "model")
    with pytest.raises(UserError, match="only a run has some"):
        quantize(folder, tmp_path / "out", method="gptq")
    monkeypatch.setattr("luthier.export.quantize.calibration", lambda model: [torch.tensor([5, 6, 7])])
    with pytest.raises(UserError, match=r"cannot write this model \(no GPU\)"):
        quantize(folder, tmp_path / "out", method="awq")
    assert shown == [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_texts_of_a_run_are_what_it_has_learnt_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = Workspace.make(tmp_path)
    luthier.train(space.recipe, overrides=["train.max_steps=1"], name="first", progress=False)
    with ready("first", tmp_path / "out") as model:
        texts = calibration(model)
        assert model.template is not None
        written = {model.tokenizer.decode(text.tolist(), skip_special=False) for text in texts}
    assert 0 < len(texts) <= 128
    assert all(1 < len(text) <= 512 for text in texts)
    assert any(model.template.end_of_turn in text for text in written)
