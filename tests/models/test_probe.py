"""The probe tells the families that isolate packed segments from those that do not."""

from __future__ import annotations

import pytest
import torch

from luthier.models.probe import probe_isolation
from tests.families import build

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "granite", "qwen3", "glm", "phi", "cohere"])
def test_isolating_families_are_accepted(family: str, dtype: torch.dtype) -> None:
    verdict = probe_isolation(build(family).to(dtype))
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize(
    ("family", "reason"), [("opt", "see each other"), ("falcon", "see each other"), ("bloom", "takes no position ids")]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_leaking_families_are_refused(family: str, reason: str, dtype: torch.dtype) -> None:
    verdict = probe_isolation(build(family).to(dtype))
    assert not verdict.ok
    assert reason in verdict.reason


def test_the_probe_would_see_a_leak() -> None:
    """A mask of ones makes transformers forget the restarts: the difference the probe looks for is large."""
    model = build("llama")
    tokens = torch.arange(3, 21)[None]
    positions = torch.cat([torch.arange(11), torch.arange(7)])[None]
    with torch.no_grad():
        isolated = model.base_model(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
        leaking = model.base_model(
            input_ids=tokens, position_ids=positions, attention_mask=torch.ones_like(tokens), use_cache=False
        ).last_hidden_state
    assert (isolated - leaking).abs().max() > 0.1
