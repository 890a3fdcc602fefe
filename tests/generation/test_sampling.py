"""Sampling follows the model's distribution, cuts as transformers does, and repeats itself for a seed."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from luthier import UserError
from luthier.generation.sampling import Decoding, choose, gumbel, stream_key, truncate

CPU = torch.device("cpu")


def test_cuts_as_transformers_does() -> None:
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(0)) * 3
    reference = LogitsProcessorList(
        [TemperatureLogitsWarper(0.7), TopKLogitsWarper(50), TopPLogitsWarper(0.8), MinPLogitsWarper(0.02)]
    )
    expected = reference(torch.zeros(20, 1, dtype=torch.int64), logits.clone())
    got = truncate(logits / 0.7, Decoding(top_k=50, top_p=0.8, min_p=0.02))
    assert torch.equal(got, expected)
    assert 20 < int(got.isfinite().sum()) < 20 * 50


def test_repetition_penalty_as_transformers_does() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, seen = torch.randn(30, 40, generator=generator), torch.randint(0, 40, (30, 25), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(1.8)(seen, logits.clone()).argmax(-1)
    got = choose(logits, Decoding(repetition_penalty=1.8), [(0, 0)] * 30, seen.tolist())
    assert torch.equal(got, expected)
    assert not torch.equal(got, logits.argmax(-1))


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0, -torch.inf])
    draws = 40_000
    counters = [(index, position) for index in range(200) for position in range(200)]
    tokens = choose(logits.expand(draws, -1), Decoding(temperature=1.5, seed=5), counters, [])
    share = torch.bincount(tokens, minlength=6) / draws
    expected = (logits / 1.5).softmax(-1)
    error = (expected * (1 - expected) / draws).sqrt()
    assert ((share - expected).abs() <= 4 * error).all()
    assert share[5] == 0


def test_noise_is_standard_gumbel_and_its_own_for_each_key() -> None:
    keys = [stream_key(seed, index, position) for seed in range(2) for index in range(3) for position in range(3)]
    assert len(set(keys)) == 18
    noise = gumbel(keys, 20_000, CPU)
    assert abs(noise.mean() - 0.5772) < 0.01
    assert abs(noise.var() - 1.6449) < 0.03
    correlation = torch.corrcoef(noise) - torch.eye(18)
    assert correlation.abs().max() < 0.04
    assert torch.equal(gumbel(keys[4:5], 100, CPU)[0], noise[4, :100])


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -1), ("top_p", 0), ("max_new_tokens", 0), ("min_p", 2), ("repetition_penalty", 0)]
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name}: .* out of range"):
        Decoding(**{name: value})
