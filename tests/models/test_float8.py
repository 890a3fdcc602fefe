"""8-bit products train whole weights to nearly the same gradients, and are refused in a line where they cannot work."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import UserError
from luthier.models.float8 import check_float8, to_float8
from luthier.models.methods import apply_method
from luthier.recipe.schema import Full, LoRA
from tests.families import build


def gradients(emulated: bool) -> tuple[float, torch.Tensor]:
    """Loss of a small Llama in bfloat16, and all its gradients end to end."""
    model = build("llama").to(torch.bfloat16)
    trained = apply_method(model, Full(), seed=0)
    if emulated:
        assert to_float8(model, emulate=True) == 2 * 7
        assert type(model.lm_head) is torch.nn.Linear
    assert dict(model.named_parameters()).keys() == trained.parameters.keys()
    tokens = torch.arange(48)[None] * 5 % 256
    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.float().flatten() for p in trained.parameters.values() if p.grad is not None])


def test_gradients_are_those_of_bf16_to_the_rounding_of_8_bits() -> None:
    pytest.importorskip("torchao")
    plain_loss, plain = gradients(emulated=False)
    loss, found = gradients(emulated=True)
    assert loss == pytest.approx(plain_loss, rel=0.05)
    assert loss != plain_loss
    assert torch.nn.functional.cosine_similarity(found, plain, dim=0) > 0.95


def test_an_adapter_has_nothing_to_speed_up() -> None:
    pytest.importorskip("torchao")
    model = build("llama")
    apply_method(model, LoRA(rank=4), seed=0)
    with pytest.raises(UserError, match="method: full"):
        to_float8(model, emulate=True)


def test_other_machines_refuse_it() -> None:
    with pytest.raises(UserError, match=r"train.precision: fp8 needs a GPU .* Use `bf16`"):
        check_float8(torch.device("cpu"))
