"""Sampling follows the model's distribution, cuts as transformers does, and repeats itself for a seed."""

from __future__ import annotations

import numpy as np
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
from luthier.generation.choice import Choice, Row
from luthier.generation.sampling import Decoding, chance, draw, truncate


def choose(logits: torch.Tensor, settings: Decoding, places: list[tuple[int, int]], prompts: list[list[int]]) -> torch.Tensor:
    """The next token of rows that have the same settings."""
    rows = [Row(prompt, settings, index) for (index, _), prompt in zip(places, prompts or [[]] * len(places), strict=True)]
    for row, (_, position) in zip(rows, places, strict=True):
        row.tokens = [0] * position
    return torch.tensor(Choice(rows, logits.device).choose(logits)[0])


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


def test_chance_is_uniform_and_its_own_for_each_place() -> None:
    index, position = (grid.ravel() for grid in np.mgrid[0:200, 0:200])
    got = chance(5, index, position)
    assert got.min() >= 0
    assert got.max() < 1
    assert np.unique(got).size == got.size
    counts, _ = np.histogram(got, bins=20, range=(0, 1))
    assert np.abs(counts - 2000).max() < 4 * np.sqrt(2000)
    table = got.reshape(200, 200)
    assert abs(np.corrcoef(table[:, :-1].ravel(), table[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.02
    assert np.array_equal(chance(5, index[7:9], position[7:9]), got[7:9])
    assert not np.array_equal(chance(6, index, position), got)


@pytest.mark.parametrize("settings", [Decoding(), Decoding(temperature=0.7, seed=3), Decoding(temperature=1, top_p=0.8, top_k=9)])
def test_what_is_drawn_is_what_is_chosen_with_its_probability(settings: Decoding) -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 3
    index, position = np.arange(50), np.arange(50) % 7
    tokens, logprobs = draw(logits, settings, index, position)
    assert torch.equal(tokens, choose(logits, settings, list(zip(index.tolist(), position.tolist(), strict=True)), []))
    expected = (logits / (settings.temperature or 1)).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)


def test_the_border_of_rounding_is_no_token_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [-torch.inf, 0.0, 0.0]])
    for number, expected in ((0.0, [0, 1]), (1 - 2.0**-53, [1, 2])):
        monkeypatch.setattr("luthier.generation.choice.chance", lambda *_, number=number: np.full(2, number))
        assert choose(logits, Decoding(temperature=1), [(0, 0)] * 2, []).tolist() == expected


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -1), ("top_p", 0), ("max_new_tokens", 0), ("min_p", 2), ("repetition_penalty", 0)]
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name}: .* out of range"):
        Decoding(**{name: value})
