"""A deeper model begins as the one it came from, trains its new blocks alone, and is an ordinary folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.errors import UserError
from luthier.models.expand import _origins
from luthier.models.methods import apply_method
from luthier.models.policy import Policy
from luthier.recipe.schema import LlamaPro
from tests.families import build
from tests.method_table import logits_apart
from tests.models.batches import ragged


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "bloom", "deepseek"])
def test_new_blocks_add_nothing_at_first(family: str, tmp_path: Path) -> None:
    batch = ragged((9, 30))
    trained = apply_method(model := build(family), LlamaPro(blocks=2), seed=0)
    before = logits_apart(build(family), batch)
    torch.testing.assert_close(logits_apart(model, batch), before, atol=1e-5, rtol=0)
    assert model.config.num_hidden_layers == 4
    assert {number for name in trained.parameters for number in name.split(".") if number.isdigit()} >= {"1", "3"}
    assert not any(f".{number}." in f".{name}" for name in trained.parameters for number in ("0", "2") if "experts" not in name)
    Policy(model, trained).save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits_apart(plain, batch), before, atol=1e-5, rtol=0)


def test_blocks_are_spread_evenly() -> None:
    assert [index for index, (_, new) in enumerate(_origins(8, 2)) if new] == [4, 9]
    assert _origins(3, 3) == [(0, False), (0, True), (1, False), (1, True), (2, False), (2, True)]
    assert sum(new for _, new in _origins(7, 4)) == 4


def test_more_blocks_than_layers_are_refused() -> None:
    with pytest.raises(UserError, match="the model has 2 layers, so at most that many blocks"):
        apply_method(build("llama"), LlamaPro(blocks=3), seed=0)
