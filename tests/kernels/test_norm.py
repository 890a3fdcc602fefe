"""The fused norm is its plain definition, and that of transformers, forward and backward."""

from __future__ import annotations

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from luthier.kernels.norm import rms_norm, rms_norm_reference

SHAPE, EPSILON = (2, 5, 16), 1e-6


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("centred", [False, True], ids=["llama", "gemma"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_equals_its_definition(dtype: torch.dtype, tolerance: float, centred: bool, trained: bool) -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(SHAPE, dtype=dtype, requires_grad=True), torch.randn(SHAPE, dtype=dtype)
    weight = torch.randn(SHAPE[-1], dtype=dtype, requires_grad=trained)
    leaves = [x, weight] if trained else [x]
    ours, plain = (function(x, weight, EPSILON, centred=centred) for function in (rms_norm, rms_norm_reference))
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(plain, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "centred"), [(LlamaRMSNorm, False), (GemmaRMSNorm, True)])
def test_rounds_like_transformers(kind: type[torch.nn.Module], centred: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = kind(SHAPE[-1], EPSILON).to(dtype)
    with torch.no_grad():
        norm.weight.normal_()
        x = torch.randn(SHAPE, dtype=dtype) * 3
        ours, theirs = rms_norm(x, norm.weight, EPSILON, centred=centred), norm(x)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=2 * eps, atol=2 * eps)
    if dtype == torch.bfloat16:
        assert (ours == theirs).float().mean() > 0.9, "rounded at the same places, so the last bit differs here and there only"
