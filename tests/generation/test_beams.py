"""Beam search finds what transformers' finds, token for token."""

from __future__ import annotations

import pytest
import torch

import luthier
from luthier import UserError
from luthier.generation.decode import Answer, Decoder, Request, generate
from luthier.generation.sampling import Decoding
from tests.families import build
from tests.generation.test_decode import Letters, prompts


@pytest.mark.parametrize(("beams", "penalty"), [(2, 1.0), (4, 0.0), (3, 2.0)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_as_transformers_does(family: str, beams: int, penalty: float) -> None:
    model = build(family)
    stops = [7, 91, 130]
    for prompt in prompts()[:4]:
        reference = model.generate(
            torch.tensor([prompt]),
            num_beams=beams,
            length_penalty=penalty,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        settings = Decoding(max_new_tokens=12, num_beams=beams, length_penalty=penalty, stop_ids=frozenset(stops))
        (answer,) = generate(model, Letters(), [prompt], settings)
        assert list(answer.tokens) == reference
        assert answer.reason == ("stop" if reference[-1] in stops else "length")


def test_on_the_embedded_model() -> None:
    chat = luthier.load("tiny")
    chat.model.float()
    settings = chat.decoding(max_new_tokens=24, num_beams=4)
    prompt = chat.prompt("What is the capital of France?")
    reference = chat.model.generate(
        torch.tensor([prompt]), num_beams=4, max_new_tokens=24, do_sample=False, eos_token_id=sorted(settings.stop_ids)
    )
    (answer,) = generate(chat.model, chat.tokenizer, [prompt], settings)
    assert list(answer.tokens) == reference[0, len(prompt) :].tolist()
    assert answer.text == chat.tokenizer.decode(answer.tokens)


def test_beams_beside_other_requests_and_cancelled() -> None:
    model = build("llama")
    search, greedy = Decoding(max_new_tokens=8, num_beams=3), Decoding(max_new_tokens=12)
    asked = [(prompts()[0], search), (prompts()[1], greedy), (prompts()[2], search), (prompts()[3], greedy)]
    expected = [generate(model, Letters(), [prompt], settings)[0] for prompt, settings in asked]
    for slots in (1, 4, 32):
        decoder = Decoder(model, Letters(), slots=slots)
        requests = [Request(prompt, settings) for prompt, settings in asked]
        for request in requests:
            decoder.submit(request)
        answers: dict[Request, Answer] = {piece.request: piece.answer for piece in decoder.run() if piece.answer}
        assert [answers[request] for request in requests] == expected
    gone = Request(prompts()[0], search)
    decoder.submit(gone)
    decoder.step()
    decoder.cancel(gone)
    assert not decoder.busy


def test_a_stop_string_ends_a_hypothesis() -> None:
    model = build("llama")
    (free,) = generate(model, Letters(), [prompts()[0]], Decoding(max_new_tokens=8, num_beams=2))
    stop = free.text[2:4]
    (answer,) = generate(model, Letters(), [prompts()[0]], Decoding(max_new_tokens=8, num_beams=2, stop_strings=(stop,)))
    assert stop not in answer.text


def test_what_does_not_go_with_beams_is_refused() -> None:
    with pytest.raises(UserError, match="`temperature` does not go with beams"):
        Decoding(num_beams=2, temperature=1.0)
    with pytest.raises(UserError, match="`logprobs`"):
        Decoding(num_beams=2, logprobs=0)
