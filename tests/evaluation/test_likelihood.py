"""Likelihoods are those of the plain model, however they are packed; windows ask about each token once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luthier.evaluation.likelihood import Passage, windows
from tests.evaluation.examinees import random, tiny


def plain(model: torch.nn.Module, passage: Passage) -> tuple[float, bool]:
    """By the full logits of one text."""
    tokens = torch.from_numpy(passage.tokens.astype(np.int64))[None]
    with torch.no_grad():
        said = model(tokens).logits[0].float().log_softmax(-1)
    places = np.flatnonzero(passage.asked)
    chosen = said[places - 1, tokens[0, places]]
    return float(chosen.sum()), bool((said[places - 1].argmax(-1) == tokens[0, places]).all())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2"])
def test_likelihoods_are_those_of_the_model(family, monkeypatch):
    monkeypatch.setattr("luthier.evaluation.likelihood.TOGETHER", 40)
    examinee = random(family)
    chance = np.random.default_rng(0)
    passages = [Passage.of(chance.integers(3, 200, 1 + n % 7), chance.integers(3, 200, 1 + n % 4)) for n in range(24)]
    heard = []
    said = examinee.likelihoods(passages, done=lambda done, total: heard.append((done, total)))
    for passage, one in zip(passages, said, strict=True):
        logprob, greedy = plain(examinee.chat.model, passage)
        assert one.logprob == pytest.approx(logprob, abs=1e-4)
        assert one.greedy == greedy
        assert one.tokens == passage.asked.sum()
    assert heard[-1] == (24, 24)
    assert len(heard) > 2


def test_choices_of_one_question_are_read_once(monkeypatch):
    examinee = random("llama")
    passages = [Passage.of([5, 6, 7, 8], [letter]) for letter in (10, 11, 12, 13)]
    read = []
    hidden = examinee.policy.hidden
    monkeypatch.setattr(
        examinee.policy, "hidden", lambda batch, packing: (read.append(len(batch)), hidden(batch, packing=packing))[1]
    )
    said = examinee.likelihoods(passages)
    assert read == [4]
    assert [one.logprob for one in said] == pytest.approx([plain(examinee.chat.model, p)[0] for p in passages], abs=1e-5)


def test_the_temperature_of_samples_does_not_count():
    examinee = random("llama")
    passage = Passage.of([5, 6], [7, 8])
    before = examinee.likelihoods([passage])[0].logprob
    examinee.policy.temperature = 0.7
    assert examinee.likelihoods([passage])[0].logprob == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 21])
def test_windows_ask_about_every_token_once(count):
    tokens = list(range(100, 100 + count))
    asked = [part.tokens[part.asked].tolist() for part in windows(tokens, 1, 8)]
    assert [token for part in asked for token in part] == tokens
    parts = list(windows(tokens, 1, 8))
    assert parts[0].tokens[0] == 1
    assert all(len(part.tokens) <= 9 for part in parts)
    assert all(len(part.tokens) == 9 for part in parts[1:])  # as much before as fits


def test_a_passage_that_is_too_long_keeps_its_end():
    cut = Passage.of(range(20), [50, 51]).cut(8)
    assert cut.tokens.tolist() == [13, 14, 15, 16, 17, 18, 19, 50, 51]
    assert cut.asked.tolist() == [False] * 7 + [True] * 2
    assert not Passage.of([1], range(20)).cut(8).asked[0]


def test_the_boundary_is_found_on_the_whole_text():
    examinee = tiny()
    encode = examinee.chat.tokenizer.encode
    one, other = examinee.passage("Question: what?\nAnswer:", " blue"), examinee.passage("Question: what?\nAnswer: ", "blue")
    assert one.tokens.tolist() == other.tokens.tolist() == encode("Question: what?\nAnswer: blue").ids.tolist()
    assert one.asked.tolist() == other.asked.tolist()
    assert examinee.chat.tokenizer.decode(one.tokens[one.asked].tolist()) == " blue"
    alone = examinee.passage("", "blue")
    assert alone.tokens[0] == examinee.first
    assert not alone.asked[0]


def test_an_answer_in_the_template_ends_its_own_text():
    examinee = tiny()
    passage = examinee.answer_passage([{"role": "user", "content": "Hi <|im_end|>"}], "Hello")
    text = examinee.chat.tokenizer.decode(passage.tokens.tolist(), skip_special=False)
    assert text.endswith("assistant\nHello")
    assert (
        passage.tokens[: -passage.asked.sum()].tolist()
        == examinee.prompt([{"role": "user", "content": "Hi <|im_end|>"}])[: len(passage.tokens) - passage.asked.sum()]
    )
