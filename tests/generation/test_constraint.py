"""Answers have the form that is asked for, whatever the model would rather say."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import luthier
from luthier import UserError
from luthier.data.tokenizer import load_tokenizer
from luthier.generation.chat import ChatModel
from luthier.generation.constraint import Constraint, guide
from luthier.generation.decode import Answer, Decoder, Request, generate
from luthier.generation.sampling import Decoding
from tests.families import build
from tests.generation.test_decode import Letters, prompts

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "绿色", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tiny() -> ChatModel:
    chat = luthier.load("tiny")
    assert isinstance(chat, ChatModel)
    chat.model.float()
    return chat


def answers(chat: ChatModel, form: Constraint | None, count: int = 6, temperature: float = 1.5) -> list[Answer]:
    prompt = chat.prompt("Tell me about a person.")
    settings = chat.decoding(max_new_tokens=160, temperature=temperature, seed=5)
    return generate(chat.model, chat.tokenizer, [prompt] * count, replace(settings, constraint=form, stop_strings=()))


def test_json_of_a_schema(tiny: ChatModel) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    found = answers(tiny, Constraint.json_schema(SCHEMA))
    for answer in found:
        assert answer.reason == "stop"
        jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert len({answer.text for answer in found}) == len(found)


@pytest.mark.parametrize("pattern", [r"\d{3}-\d{4}", r"(好|不好)吗？{2}[😀-😅]", r"[A-Z][a-z]+( [a-z]{1,4}){2}\."])
def test_text_of_an_expression(tiny: ChatModel, pattern: str) -> None:
    for answer in answers(tiny, Constraint.regex(pattern)):
        assert re.fullmatch(pattern, answer.text), answer.text


def test_one_of_some_choices_ends_by_itself(tiny: ChatModel) -> None:
    choices = ["yes", 'a "quoted"\nline', "也许", "yesterday"]
    for answer in answers(tiny, Constraint.choice(choices), count=12):
        assert answer.text in choices
        assert answer.reason == "stop"


def test_text_of_a_grammar(tiny: ChatModel) -> None:
    form = Constraint.grammar('start: term (("+" | "-") term)+\nterm: /[0-9]{1,2}/ | "(" start ")"')
    for answer in answers(tiny, form):
        if answer.reason == "stop":
            assert isinstance(eval(re.sub(r"\b0+(?=\d)", "", answer.text)), int)  # digits, signs and brackets alone
            assert re.fullmatch(r"[-+()\d]+", answer.text)


def test_rows_with_and_without_a_form_share_a_batch(tiny: ChatModel) -> None:
    prompt, free = tiny.prompt("What is 2+2?"), tiny.decoding(max_new_tokens=12, logprobs=1)
    bound = replace(free, constraint=Constraint.regex(r"[a-f]{5}"))
    decoder = Decoder(tiny.model, tiny.tokenizer)
    requests = [Request(prompt, each) for each in (free, bound, free)]
    for request in requests:
        decoder.submit(request)
    found = {piece.request: piece.answer for piece in decoder.run() if piece.answer}
    first, second, third = (found[request] for request in requests)
    (alone,) = generate(tiny.model, tiny.tokenizer, [prompt], free)
    assert first.tokens == third.tokens == alone.tokens
    assert re.fullmatch(r"[a-f]{5}", second.text)
    assert second.logprobs[0].logprob < second.logprobs[0].top[0][1], "what the model says, not what it was allowed"


def test_a_stop_token_other_than_the_tokenizers_ends_where_the_form_is_complete(tiny: ChatModel) -> None:
    (stop,) = tiny.tokenizer.encode("!").ids.tolist()
    form = guide(Constraint.regex(r"[0-9]+"), tiny.tokenizer, frozenset({stop}))
    size = tiny.tokenizer.vocab_size + 8
    assert not form.allowed(size)[stop]
    form.accept(int(tiny.tokenizer.encode("7").ids[0]))
    assert form.allowed(size)[stop]
    assert not form.allowed(size)[tiny.tokenizer.vocab_size :].any(), "rows of the head that are no tokens"
    form.accept(stop)
    assert not form.complete


@pytest.mark.parametrize("name", ["llama2", pytest.param("llama3", marks=pytest.mark.slow)])
def test_vocabularies_of_sentencepiece_and_tiktoken(name: str, shared: Path) -> None:
    tokenizer = load_tokenizer(shared / "data/tokenizers" / name)
    form = guide(Constraint.choice(["你好", "hello"]), tokenizer, frozenset())
    written: list[int] = []
    while not form.complete:
        written.append(int(form.allowed(tokenizer.vocab_size).nonzero()[0][-1]))
        form.accept(written[-1])
    assert tokenizer.decode(written) in ("你好", "hello")


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (Constraint.regex("[0-9"), "regex"),
        (Constraint.json_schema({"type": "wrong"}), "Invalid type"),
        (Constraint.json_schema({"not": {}}), "not"),
        (Constraint.grammar("start: missing"), "missing"),
    ],
)
def test_a_form_that_cannot_be_read_is_refused_at_once(tiny: ChatModel, form: Constraint, said: str) -> None:
    decoder = Decoder(tiny.model, tiny.tokenizer)
    with pytest.raises(UserError, match=f"(?s)cannot be read: .*{said}") as caught:
        decoder.submit(Request([1, 2], Decoding(constraint=form)))
    assert "\n" not in str(caught.value)
    assert not decoder.busy


def test_an_answer_whose_form_is_lost_is_cut_and_the_others_go_on(tiny: ChatModel) -> None:
    prompt, free = tiny.prompt("What is 2+2?"), tiny.decoding(max_new_tokens=10)
    decoder = Decoder(tiny.model, tiny.tokenizer)
    requests = [Request(prompt, replace(free, constraint=Constraint.regex("[a-z]+"))), Request(prompt, free)]
    for request in requests:
        decoder.submit(request)
    decoder.step()
    lost = decoder._slots[0].row.guide
    assert lost
    lost._matcher.consume_token(int(tiny.tokenizer.encode("7").ids[0]))  # not of the form
    found = {piece.request: piece.answer for piece in decoder.run() if piece.answer}
    assert [found[request].reason for request in requests] == ["length", "stop"]


def test_what_is_needed_is_said(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="none of them may be empty"):
        Constraint.choice(["a", ""])
    with pytest.raises(UserError, match="a tokenizer with a vocabulary"):
        generate(build("llama"), Letters(), prompts(), Decoding(constraint=Constraint.regex("a")))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"pip install 'luthier\[constrain\]'"):
        generate(tiny.model, tiny.tokenizer, prompts(), Decoding(constraint=Constraint.regex("a")))
