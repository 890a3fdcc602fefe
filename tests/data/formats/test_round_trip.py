"""What a format can hold comes back from its rows as it was; what it cannot is named or refused, and nothing is lost in silence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.examples import Conversation, Document, Example, Feedback, Message, Origin, Preference, Prompt
from luthier.data.formats import FORMATS, READ_ONLY, lost
from luthier.data.problems import RowError

HERE = Origin("here.jsonl", 1, 0)
WRITTEN = [name for name in FORMATS if name not in READ_ONLY]

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda text: bool(text.strip()))
plain = st.text("abc 学习", min_size=1, max_size=8).map(str.strip).filter(bool)


def talks(words: st.SearchStrategy[str], *, system: bool = True) -> st.SearchStrategy[tuple[Message, ...]]:
    def made(first: str | None, pairs: list[tuple[str, str]]) -> tuple[Message, ...]:
        before = [{"role": "system", "content": first}] if first and system else []
        turns = [
            {"role": role, "content": text} for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        return (*before, *turns)

    return st.builds(made, st.none() | words, st.lists(st.tuples(words, words), min_size=1, max_size=3))


arguments = st.dictionaries(
    st.text("xy", min_size=1, max_size=2), st.integers() | st.text("ab") | st.lists(st.booleans(), max_size=2)
)


@st.composite
def agents(draw: st.DrawFn) -> tuple[Message, ...]:
    """Conversations with everything that messages can have."""
    messages: list[Message] = list(draw(talks(texts)))
    for message in messages:
        if message["role"] == "assistant" and draw(st.booleans()):
            message["reasoning_content"] = draw(texts)
        if message["role"] == "assistant" and draw(st.booleans()):
            message["weight"] = draw(st.sampled_from([0.0, 0.5, 1.0]))
    if draw(st.booleans()):
        calls = [
            {"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": draw(arguments)}}
            for i in range(draw(st.integers(1, 2)))
        ]
        messages += [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": draw(st.just("") | texts), "tool_calls": calls},
            *({"role": "tool", "content": draw(texts), "name": "f", "tool_call_id": call["id"]} for call in calls),
            {"role": "assistant", "content": "done"},
        ]
    return tuple(messages)


TOOLS = ({"type": "function", "function": {"name": "f", "description": "…", "parameters": {"type": "object"}}},)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    messages, tools = draw(agents()), draw(st.none() | st.just(TOOLS))
    asked = (*messages, {"role": "user", "content": draw(texts)})
    better, worse = ({"role": "assistant", "content": mark + draw(texts)} for mark in "ab")
    made: list[Example] = [
        Document(draw(texts), HERE),
        Conversation(messages, HERE, tools),
        Preference(asked, (better,), (worse,), HERE, tools),
        Feedback(messages, draw(st.booleans()), HERE, tools),
        Prompt(asked, HERE, draw(st.none() | plain), tools),
    ]
    return draw(st.sampled_from(made))


def through(name: str, example: Example) -> list[Example]:
    row = json.loads(json.dumps(FORMATS[name].write(example), ensure_ascii=False))
    assert FORMATS[name].matches(row), row
    return list(FORMATS[name].parse(row, HERE, {}))


@settings(max_examples=150, deadline=None)
@given(examples())
def test_messages_and_their_kin_hold_everything(example: Example) -> None:
    wholly = {Conversation: ("messages", "sharegpt"), Document: ("messages", "text", "xtuner"), Prompt: ("prompt",)}
    wholly |= {Preference: ("messages", "sharegpt", "preference", "openai_dpo"), Feedback: ("messages", "sharegpt", "kto")}
    for name in wholly[type(example)]:
        assert lost(FORMATS[name], example) == [], name
        assert through(name, example) == [example], name


@settings(max_examples=80, deadline=None)
@given(talks(texts))
def test_plain_talk_is_held_by_the_formats_of_columns(messages: tuple[Message, ...]) -> None:
    example = Conversation(messages, HERE)
    for name in ("messages", "sharegpt", "alpaca", "xtuner", "qa", "prompt_completion"):
        assert lost(FORMATS[name], example) == [], name
        assert through(name, example) == [example], name


@settings(max_examples=80, deadline=None)
@given(talks(plain))
def test_texts_with_marks_hold_talk_without_them(messages: tuple[Message, ...]) -> None:
    for name in ("guanaco", "human_text", "llama2_text"):
        assert through(name, Conversation(messages, HERE)) == [Conversation(messages, HERE)]
    messages = messages[messages[0]["role"] == "system" :]
    asked, answer = messages[:-1], messages[-1]
    pair = Preference(asked, (answer,), ({"role": "assistant", "content": answer["content"] + "!"},), HERE)
    assert through("hh_rlhf", pair) == [pair]


@settings(max_examples=150, deadline=None)
@given(examples(), st.sampled_from(WRITTEN))
def test_nothing_is_lost_in_silence(example: Example, name: str) -> None:
    try:
        missing = lost(FORMATS[name], example)
    except RowError:
        return  # it says so
    back = through(name, example)
    assert bool(missing) == (back != [example])


def test_what_is_lost_is_named() -> None:
    messages = (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "weight": 0.5, "reasoning_content": "hm"},
    )
    example = Conversation(messages, HERE, TOOLS)
    assert lost(FORMATS["alpaca"], example) == ["loss weights", "reasoning"]
    assert lost(FORMATS["xtuner"], example) == ["tools", "loss weights", "reasoning"]
    assert lost(FORMATS["dolly"], example) == ["tools", "the system prompt", "loss weights", "reasoning"]
    marked = Conversation(({"role": "user", "content": "### Human: q"}, {"role": "assistant", "content": " a "}), HERE)
    assert lost(FORMATS["guanaco"], marked) == ["text"]


@pytest.mark.parametrize(
    ("name", "example", "said"),
    [
        ("alpaca", Document("x", HERE), "format `alpaca` has no place for a document"),
        ("messages", Prompt(({"role": "user", "content": "q"},), HERE), "format `messages` has no place for a prompt"),
        ("samsum", Conversation(({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}), HERE), "do not begin with"),
        ("moss", Document("x", HERE), "format `moss` is only read"),
    ],
)  # fmt: skip
def test_no_place(name: str, example: Example, said: str) -> None:
    with pytest.raises(RowError, match=said):
        FORMATS[name].write(example)


def test_calls_without_ids_gain_them_and_lose_nothing() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages: tuple[dict[str, Any], ...] = (
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1", "name": "f"},
        {"role": "assistant", "content": "a"},
    )
    assert lost(FORMATS["sharegpt"], Conversation(messages, HERE)) == []
