"""Every setting does what its name says, for rows with different settings in one batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import luthier
from luthier import UserError
from luthier.generation.chat import ChatModel
from luthier.generation.choice import Choice, Row
from luthier.generation.decode import Answer, Decoder, Piece, Request, generate
from luthier.generation.sampling import Decoding
from tests.families import build
from tests.generation.test_decode import Letters, prompts


@pytest.fixture(scope="module")
def tiny() -> ChatModel:
    chat = luthier.load("tiny")
    assert isinstance(chat, ChatModel)
    chat.model.float()
    return chat


def choose(logits: torch.Tensor, rows: list[Row]) -> list[int]:
    return Choice(rows, logits.device).choose(logits)[0]


def row(settings: Decoding, prompt: tuple[int, ...] = (), said: tuple[int, ...] = (), index: int = 0) -> Row:
    made = Row(prompt, settings, index)
    for token in said:
        made.accept(token)
    return made


SETTINGS = [
    Decoding(),
    Decoding(temperature=1.0, seed=3),
    Decoding(temperature=0.7, top_k=5, seed=2**70 + 1),
    Decoding(temperature=1.3, top_p=0.8),
    Decoding(temperature=1.0, top_k=40, top_p=0.5, min_p=0.05),
    Decoding(temperature=2.0, min_p=0.1),
    Decoding(repetition_penalty=1.7),
    Decoding(presence_penalty=1.5, temperature=0.9),
    Decoding(frequency_penalty=-0.8, presence_penalty=0.3),
    Decoding(logit_bias=((5, 9.0), (6, -100.0))),
]


def test_rows_of_different_settings_choose_as_each_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = torch.randn(len(SETTINGS), 600, generator=generator) * 2
        rows = [row(each, (1, 2, 3), (4, 5, 5, n), index=n) for n, each in enumerate(SETTINGS)]
        assert choose(logits, rows) == [choose(logits[n : n + 1], [one])[0] for n, one in enumerate(rows)]


def test_presence_and_frequency_penalties_as_openai_documents_them() -> None:
    """mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, c over what the answer has."""
    generator = torch.Generator().manual_seed(1)
    said = (4, 9, 4, 4, 17, 9, 30)
    for presence, frequency in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.7), (1.2, -0.4), (-2.0, 2.0)):
        settings = Decoding(presence_penalty=presence, frequency_penalty=frequency)
        logits = torch.randn(1, 40, generator=generator)
        counts = torch.zeros(40).scatter_add_(0, torch.tensor(said), torch.ones(len(said)))
        expected = logits[0] - counts * frequency - (counts > 0).float() * presence
        got = Choice([row(settings, (1, 2, 2), said)], logits.device)._adjusted(logits)[0]
        torch.testing.assert_close(got, expected)
        assert torch.equal(got, logits[0]) == (presence == frequency == 0)


def test_a_presence_penalty_makes_answers_repeat_less(tiny: ChatModel) -> None:
    prompt = tiny.prompt("Tell me a story about a cat.")
    settings = replace(tiny.decoding(max_new_tokens=60), logit_bias=tuple((token, -100.0) for token in tiny.stop_ids()))
    plain, none, half, two = generate_each(
        tiny, prompt, [replace(settings, presence_penalty=penalty) for penalty in (-0.0, 0.0, 0.5, 2.0)]
    )
    assert plain.tokens == none.tokens
    assert half.tokens != none.tokens
    assert len(set(two.tokens)) > len(set(half.tokens)) >= len(set(plain.tokens))


def generate_each(chat: ChatModel, prompt: list[int], settings: list[Decoding]) -> list[Answer]:
    decoder = Decoder(chat.model, chat.tokenizer)
    requests = [Request(prompt, each) for each in settings]
    for request in requests:
        decoder.submit(request)
    answers = {piece.request: piece.answer for piece in decoder.run() if piece.answer}
    return [answers[request] for request in requests]


def test_a_temperature_next_to_nothing_is_none() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert choose(logits, [row(Decoding(temperature=cold)) for cold in (1e-6, 1e-45, 1e-300)]) == logits.argmax(-1).tolist()


def test_a_bias_forbids_and_forces() -> None:
    logits = torch.zeros(2, 10)
    logits[:, 3] = 5
    forbidden, forced = Decoding(logit_bias=((3, -100.0), (1000, 5.0))), Decoding(logit_bias=((7, 100.0),))
    assert choose(logits, [row(forbidden), row(forced)])[0] != 3
    assert choose(logits, [row(forbidden), row(forced)])[1] == 7


def test_logprobs_are_those_of_the_model_and_add_up_piece_by_piece(tiny: ChatModel) -> None:
    prompt = tiny.prompt("你好！")
    settings = tiny.decoding(max_new_tokens=12, temperature=1.5, presence_penalty=1.0, logprobs=3, seed=4)
    decoder = Decoder(tiny.model, tiny.tokenizer)
    decoder.submit(Request(prompt, settings))
    decoder.submit(Request(prompt, replace(settings, logprobs=None)))
    decoder.submit(Request(prompt, replace(settings, logprobs=0)))
    pieces: dict[Request, list[Piece]] = {}
    for piece in decoder.run():
        pieces.setdefault(piece.request, []).append(piece)
    (answer, silent, bare) = (made[-1].answer for made in pieces.values())
    assert answer is not None
    assert silent is not None
    assert bare is not None
    assert [token for piece in next(iter(pieces.values())) for token in piece.tokens] == list(answer.tokens)
    assert tuple(told for piece in next(iter(pieces.values())) for told in piece.logprobs) == answer.logprobs
    with torch.no_grad():
        whole = tiny.model(torch.tensor([[*prompt, *answer.tokens]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    expected = whole.log_softmax(-1)
    for told, line, token in zip(answer.logprobs, expected, answer.tokens, strict=True):
        assert told.token == token
        assert told.logprob == pytest.approx(float(line[token]), abs=1e-4)
        assert [one for one, _ in told.top] == line.topk(3).indices.tolist()
        assert [value for _, value in told.top] == pytest.approx(line.topk(3).values.tolist(), abs=1e-4)
    assert silent.logprobs == ()
    assert [told.top for told in bare.logprobs] == [()] * len(bare.tokens)


def test_the_same_seed_twice_is_the_same_text_and_n_answers_differ(tiny: ChatModel) -> None:
    prompts_ = [tiny.prompt("Tell me a story.")] * 4
    settings = tiny.decoding(max_new_tokens=16, temperature=2.0, seed=11)
    first, second = (generate(tiny.model, tiny.tokenizer, prompts_, settings) for _ in range(2))
    assert first == second
    assert len({answer.text for answer in first}) == 4


def test_a_cancelled_request_is_never_heard_of_again() -> None:
    model = build("llama")
    settings = Decoding(max_new_tokens=12)
    expected = generate(model, Letters(), prompts(), settings)
    decoder = Decoder(model, Letters(), slots=3)
    requests = [Request(prompt, settings, index) for index, prompt in enumerate(prompts())]
    for request in requests:
        decoder.submit(request)
    assert (decoder.busy, decoder.waiting) == (True, len(requests))
    answers: dict[Request, Answer] = {}
    for step in range(1000):
        if not decoder.busy:
            break
        pieces = decoder.step()
        assert step < 2 or requests[1] not in {piece.request for piece in pieces}
        answers |= {piece.request: piece.answer for piece in pieces if piece.answer}
        if step == 1:
            assert decoder.waiting == len(requests) - 3
            decoder.cancel(requests[1])  # in a slot
            decoder.cancel(requests[5])  # in the queue
            decoder.cancel(requests[1])  # once more
    gone = {1, 5}
    assert [answers.get(request) for request in requests] == [
        None if index in gone else answer for index, answer in enumerate(expected)
    ]
    assert decoder.waiting == 0


def test_cancelling_all_leaves_an_empty_decoder() -> None:
    decoder = Decoder(build("llama"), Letters())
    request = Request(prompts()[0], Decoding())
    decoder.submit(request)
    decoder.step()
    decoder.cancel(request)
    assert not decoder.busy
    assert decoder.step() == []


def test_characters_of_several_tokens_arrive_whole(tiny: ChatModel) -> None:
    text = "龘靐齉 😀👩‍🚀 naïve"
    ids = tiny.tokenizer.encode(text).ids.tolist()
    assert len(ids) > len(text), "several tokens for a character"
    bias = [Decoding(max_new_tokens=1, logit_bias=((token, 1000.0),)) for token in ids]
    decoder, prompt, seen = Decoder(tiny.model, tiny.tokenizer), tiny.prompt("Hi"), []
    request = Request(prompt, Decoding(max_new_tokens=len(ids), stop_strings=("naïve!", " na")))
    decoder.submit(request)
    for token in ids:  # the model is made to say this text
        slot = decoder._slots[0] if decoder._slots else decoder._queue[0]
        slot.row.settings = bias[len(seen)]
        decoder._choice = None
        seen += decoder.step()
        assert seen[-1].tokens == (token,)
        if seen[-1].answer:
            break
    assert all("\ufffd" not in piece.text for piece in seen)
    assert "".join(piece.text for piece in seen) == "龘靐齉 😀👩‍🚀"
    assert seen[-1].answer
    assert seen[-1].answer.reason == "stop"
    assert any(not piece.text for piece in seen)


def test_thinking_is_told_to_the_template(tiny: ChatModel) -> None:
    template = luthier.chat.ChatTemplate("switch", "{{ enable_thinking | default('unsaid') }} {{ mood }}", {})
    chat = ChatModel(tiny.model, tiny.tokenizer, template)
    said = [tiny.tokenizer.decode(chat.prompt("Hi", thinking=thinking, mood="calm")) for thinking in (None, True, False)]
    assert said == ["unsaid calm", "True calm", "False calm"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("presence_penalty", float("nan")), ("frequency_penalty", float("inf")), ("temperature", float("nan")), ("logprobs", -1),
        ("logit_bias", ((1, 2.0), (1, 3.0))), ("logit_bias", ((1, float("nan")),)), ("num_beams", 0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(UserError, match=name):
        Decoding(**{name: value})  # type: ignore[arg-type]


def test_a_nucleus_wider_than_the_head_is_cut_in_the_same_place() -> None:
    from transformers import TopPLogitsWarper

    from luthier.generation.sampling import HEAD, cut

    logits = torch.randn(4, 3 * HEAD, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.1], [1.0], [3.0], [6.0]])
    for mass in (0.3, 0.9, 0.99):
        got = cut(logits, np.zeros(4, np.int64), np.full(4, mass), np.zeros(4))
        assert torch.equal(got, TopPLogitsWarper(mass)(torch.zeros(4, 1), logits.clone()))
