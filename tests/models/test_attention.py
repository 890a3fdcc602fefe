"""Attention within segments is block-diagonal attention, gradients, sliding windows and recomputation included."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from luthier.models.attention import NAME
from luthier.models.checkpointing import set_checkpointing
from luthier.models.policy import Policy
from tests.families import build
from tests.models.test_policy import LENGTHS, ragged

FAMILIES = ["llama", "gpt2", "mixtral", "granite", "qwen3", "glm", "phi", "cohere"]


def trained(model: PreTrainedModel, *, packing: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    hidden = Policy(model).hidden(ragged(LENGTHS), packing=packing)
    (hidden * torch.arange(hidden.shape[1])).mean().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_padded_sdpa(family: str) -> None:
    model = build(family).requires_grad_(True)
    model.set_attn_implementation("sdpa")
    expected, gradients = trained(model, packing=False)
    model.set_attn_implementation(NAME)
    policy = Policy(model)
    assert policy.isolation.ok, policy.isolation.reason
    found, again = trained(model, packing=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-7)


def test_sliding_window_holds_within_segments() -> None:
    model = build("qwen3", use_sliding_window=True, sliding_window=4, max_window_layers=0)
    assert set(model.config.layer_types) == {"sliding_attention"}
    model.set_attn_implementation("sdpa")
    expected, _ = trained(model.requires_grad_(True), packing=False)
    model.set_attn_implementation(NAME)
    found, _ = trained(model, packing=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_recomputation_sees_the_same_segments(mode: str) -> None:
    model = build("llama").requires_grad_(True).train()
    model.set_attn_implementation(NAME)
    _, expected = trained(model, packing=True)
    set_checkpointing(model, mode)  # type: ignore[arg-type]
    _, found = trained(model, packing=True)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_the_name_is_not_saved(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = build("llama")
    model.set_attn_implementation(NAME)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
