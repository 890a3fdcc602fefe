"""ALiBi by its definition: slopes, distances, cache and padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import luthier.models
from luthier.generation.decode import generate
from luthier.generation.sampling import Decoding
from luthier.models.legacy.alibi import alibi_attention, slopes
from tests.models.legacy.cases import expected, fixture, inputs


def test_slopes_are_those_of_the_paper() -> None:
    assert slopes(8) == [2.0**-k for k in range(1, 9)]
    assert slopes(6) == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    assert len(slopes(40)) == 40


def test_attention_is_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 6, 9, 4, generator=generator) for _ in range(3))
    scores = query @ key.transpose(2, 3) / 2
    for head, slope in enumerate(slopes(6)):
        for i in range(9):
            for j in range(9):
                scores[0, head, i, j] += -slope * (i - j) if j <= i else -torch.inf
    wanted = scores.softmax(-1) @ value
    assert torch.allclose(alibi_attention(query, key, value, None, 0.0), wanted, atol=1e-6)
    last = alibi_attention(query[:, :, 6:], key, value, None, 0.0)  # as with a cache
    assert torch.allclose(last, wanted[:, :, 6:], atol=1e-6)


class Numbers:
    """Stands for a tokenizer."""

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        return " ".join(map(str, ids))


@pytest.mark.parametrize("name", ["baichuan1_13b", "baichuan2_13b"])
def test_decoding_with_a_cache_and_in_company_follows_the_logits(name: str, shared: Path) -> None:
    folder = fixture(shared, name)
    model = luthier.models.load(str(folder))
    prompts = [ids[0].tolist() for key, ids, _mask, _logits in inputs(expected(folder)) if key.startswith("single")]
    answers = generate(model, Numbers(), prompts, Decoding(max_new_tokens=6, temperature=0.0))
    for prompt, answer in zip(prompts, answers, strict=True):
        text = list(prompt)
        with torch.no_grad():
            for token in answer.tokens:
                assert int(model(torch.tensor([text])).logits[0, -1].argmax()) == token
                text.append(token)
