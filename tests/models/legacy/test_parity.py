"""Converted models compute what the original code computed: logits, loss, gradients; packed as padded; and they train with LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import luthier.models
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.insert import insert_adapter
from luthier.models.hub import fetch
from luthier.models.loading import load_model
from luthier.models.policy import Policy
from luthier.recipe.schema import Model
from tests.models.batches import ragged
from tests.models.legacy.cases import BEYOND, FIXTURES, expected, fixture, inputs, loss_of, original_gradient


@pytest.fixture(params=FIXTURES)
def folder(request: pytest.FixtureRequest, shared: Path) -> Path:
    return fixture(shared, request.param)


@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
def test_logits_are_the_original_s(folder: Path, attention: str) -> None:
    model = load_model(Model(path=str(folder), attention=attention), dtype=torch.float32, device=torch.device("cpu"))
    with torch.no_grad():
        for name, ids, mask, logits in inputs(expected(folder), skip=BEYOND.get(folder.name)):
            error = (model(ids, mask).logits - logits)[mask.bool()].abs().max()
            assert error <= 1e-4, (name, float(error))


def test_loss_and_gradients_are_the_original_s(folder: Path) -> None:
    model, values = luthier.models.load(str(folder), dtype="float32"), expected(folder)
    loss = loss_of(model, values)
    loss.backward()
    assert float(loss) == pytest.approx(float(values["loss.value"]), rel=1e-5)
    recorded = [key for key in values if key.startswith("grad_norm.")]
    assert recorded
    for key in recorded:
        norm = float(original_gradient(model, key.removeprefix("grad_norm.")).norm())
        assert norm == pytest.approx(float(values[key]), rel=1e-4), key


def test_packed_is_padded(folder: Path) -> None:
    policy, batch = Policy(luthier.models.load(str(folder), dtype="float32")), ragged([33, 7, 1, 40, 20])
    assert policy.isolation.ok
    with torch.no_grad():
        assert (policy.hidden(batch, packing=True) - policy.hidden(batch, packing=False)).abs().max() <= 1e-4


def test_lora_on_all_linear_layers_learns(folder: Path) -> None:
    model, values = luthier.models.load(str(folder), dtype="float32"), expected(folder)
    insert_adapter(model, AdapterConfig(rank=4, alpha=8), seed=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(4):
        loss = loss_of(model, values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1


def test_sixteen_bit_models_are_near(folder: Path) -> None:
    model, values = luthier.models.load(str(folder), dtype=torch.bfloat16), expected(folder)
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        _name, ids, mask, logits = next(inputs(values))
        assert (model(ids, mask).logits.float() - logits)[mask.bool()].std() < 0.1 * logits.std()


def test_the_folder_that_is_loaded_is_native(folder: Path) -> None:
    native = fetch(str(folder))
    assert native != folder
    assert native == fetch(str(folder))


def test_given_positions_are_used_as_the_original_did(folder: Path) -> None:
    values = expected(folder)
    if "left_pos.logits" not in values:
        pytest.skip("the original code ignored position ids")
    model, mask = luthier.models.load(str(folder)), values["left.attention_mask"]
    with torch.no_grad():
        logits = model(values["left.input_ids"], mask, position_ids=values["left_pos.position_ids"]).logits
    assert (logits - values["left_pos.logits"])[mask.bool()].abs().max() <= 1e-4
