"""Recomputing activations changes memory, not gradients."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.models.checkpointing import Mode, decoder_layers, set_checkpointing
from luthier.models.methods import apply_method
from luthier.models.policy import Policy
from luthier.recipe.schema import LoRA
from tests.families import CONFIGS, LAYERS, MATRIX, build
from tests.models.batches import ragged


class Counter(TorchDispatchMode):
    """Counts how often attention and matrix products run."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(func)
        self.attention += "scaled_dot_product" in name and "backward" not in name
        self.products += name.startswith(("aten.mm", "aten.addmm"))
        return func(*args, **(kwargs or {}))


def step(family: str, mode: Mode) -> tuple[dict[str, torch.Tensor], Counter]:
    model = build(family).train()
    policy = Policy(model, apply_method(model, LoRA(rank=2, dropout=0.2), seed=0))
    for name, parameter in policy.trainable.parameters.items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(7))
    set_checkpointing(model, mode)
    torch.manual_seed(11)
    with Counter() as counter:
        policy.hidden(ragged([9, 14, 3]), packing=True).square().sum().backward()
    return {name: parameter.grad for name, parameter in policy.trainable.parameters.items()}, counter


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("family", MATRIX)
def test_gradients_stay_bitwise_the_same(family: str, mode: Mode) -> None:
    plain, _ = step(family, "none")
    checkpointed, _ = step(family, mode)
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


def test_full_computes_all_twice_and_selective_spares_attention() -> None:
    counts = {mode: step("llama", mode)[1] for mode in ("none", "selective", "full")}
    assert counts["none"].attention == counts["selective"].attention == LAYERS
    assert counts["full"].attention == 2 * LAYERS
    assert counts["none"].products < counts["selective"].products <= counts["full"].products


def test_it_can_be_taken_off_again() -> None:
    model = build("llama")
    set_checkpointing(model, "full")
    set_checkpointing(model, "none")
    assert all("forward" not in vars(layer) for layer in decoder_layers(model))


@pytest.mark.parametrize("family", CONFIGS)
def test_decoder_layers_are_found_in_every_family(family: str) -> None:
    assert len(decoder_layers(build(family))) == LAYERS
