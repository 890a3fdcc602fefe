"""The whole way, data file to tuned model, ends where TRL's trainer ends, and plain PEFT and transformers agree about the result."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from luthier.models.hub import fetch


@pytest.fixture
def against(root: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/against_trl.py`; imported late, because TRL takes seconds."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module("against_trl")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_small_model_learns_what_trl_teaches_it(against: ModuleType, tmp_path: Path, method: str) -> None:
    small = {"vocab_size": 6400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    model = against.random_llama(tmp_path / "model", **small)
    recipe = against.recipe_for(str(model), against.DATA["zh"], method, tmp_path, rows=30, batch_size=5, micro_batch_tokens=512)
    result = against.compare(recipe, tmp_path, questions=3, length=12)
    assert len(result.losses) == len(result.their_losses) == 5  # 24 rows: the last step has four
    assert result.steps <= 1e-5
    assert result.ours == pytest.approx(result.theirs, rel=1e-5)
    assert result.ours < result.base - 0.01
    assert result.reported == pytest.approx(result.ours, rel=1e-5)
    assert result.answers == result.plain_answers
    assert any(result.answers)
    assert result.merged <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("data", ["en", "zh"])
@pytest.mark.parametrize("name", ["random", "tiny"])
def test_held_out_loss_falls_as_with_trl(against: ModuleType, tmp_path: Path, name: str, data: str) -> None:
    model = against.random_llama(tmp_path / "model") if name == "random" else fetch("tiny")
    result = against.compare(against.recipe_for(str(model), against.DATA[data], "lora", tmp_path, rows=80), tmp_path)
    assert result.ours <= result.base - 0.3
    assert result.difference <= 0.02
    assert result.reported == pytest.approx(result.ours, rel=1e-4)
    assert result.answers == result.plain_answers
    assert any(result.answers)
    assert result.merged <= 1e-4
