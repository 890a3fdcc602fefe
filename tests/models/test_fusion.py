"""Kernels take the place of a model's own pieces only where they compute the same, and nobody else notices."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from luthier.models.fusion import fuse
from tests.families import CONFIGS, build


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_fused_model_computes_what_it_did(family: str) -> None:
    model = build(family).requires_grad_(True)
    fused = copy.deepcopy(model)
    fuse(fused)
    tokens = torch.arange(3, 19)[None]
    logits = [each(input_ids=tokens).logits for each in (model, fused)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)
    for each in logits:
        (each * torch.arange(each.shape[-1])).mean().backward()
    gradients = dict(fused.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-3, atol=1e-4 * scale + 1e-7)


def test_norms_and_rotations_of_a_llama_are_found() -> None:
    model = build("llama")
    layers = model.config.num_hidden_layers
    assert fuse(model) == 3 * layers + 1
    assert fuse(copy.deepcopy(model)) == 0, "a copy is fused as well"


def test_a_copy_has_its_own_weights() -> None:
    model = build("llama")
    fuse(model)
    norm = model.model.norm
    twin = copy.deepcopy(norm)
    with torch.no_grad():
        twin.weight.mul_(2)
        x = torch.randn(3, len(norm.weight))
        torch.testing.assert_close(twin(x), 2 * norm(x))


def test_what_only_looks_like_a_norm_is_left_alone() -> None:
    class LooksLikeRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)

    module = LooksLikeRMSNorm()
    assert fuse(module) == 0
    assert type(module) is LooksLikeRMSNorm
