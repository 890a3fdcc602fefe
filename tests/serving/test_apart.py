"""An answer is taken apart alike, whole and token by token, and nothing is told too early."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.chat import ChatTemplate, families
from luthier.chat.tools import FORMATS, SIGNS
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.models.hub import fetch
from luthier.serving.apart import Apart, Reading, call_message

TOOLS: Any = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}}
]
HERMES = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(fetch("tiny"))


def template(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(name, families()[name].source, tokenizer.variables, family=families()[name])


def read(reading: Reading, text: str, size: int) -> tuple[str, str, list[tuple[str, Any]], list[tuple[str, str]]]:
    """Content, thought and calls of a text that comes so many tokens at a time, and the parts in which it came."""
    ids = reading.tokenizer.encode(text).ids.tolist()
    apart, parts = Apart(reading), []
    for begin in range(0, len(ids), size):
        parts += apart.push(ids[begin : begin + size])
    late, calls = apart.finish()
    parts += late
    joined = {name: "".join(said for which, said in parts if which == name) for name in ("content", "reasoning_content")}
    return joined["content"], joined["reasoning_content"], [(call.name, call.arguments) for call in calls], parts


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize(
    ("text", "content", "thought", "calls"),
    [
        ("Hello, 世界 🎻!", "Hello, 世界 🎻!", "", 0),
        (HERMES, "", "", 1),
        (f"I look it up.\n{HERMES}", "I look it up.", "", 1),
        (f"{HERMES}\n{HERMES}", "", "", 2),
        ("a < b <tool", "a < b <tool", "", 0),
        ("Look: <tool_call> is a tag", "Look: <tool_call> is a tag", "", 0),
        ("<think>\nLet me see.\n</think>\n\nYes.", "Yes.", "Let me see.", 0),
        (f"<think>One. </thi two</think>{HERMES}", "", "One. </thi two", 1),
        ("<think>never done", "", "never done", 0),
        ("<thinking> is a word", "<thinking> is a word", "", 0),
        ("", "", "", 0),
    ],
)
def test_text_thought_and_calls(tokenizer: Tokenizer, text: str, content: str, thought: str, calls: int, size: int) -> None:
    reading = Reading(template("qwen3", tokenizer), tokenizer, tools=TOOLS)
    said = read(reading, text, size)
    assert said[:2] == (content, thought)
    assert said[2] == [("f", {"x": "é"})] * calls


def test_text_is_told_at_once_and_a_call_never_as_text(tokenizer: Tokenizer) -> None:
    reading = Reading(template("qwen3", tokenizer), tokenizer, tools=TOOLS)
    *_, parts = read(reading, f"One two three four. {HERMES}", 1)
    assert len(parts) > 3
    assert not any("<" in text for _, text in parts)
    single = read(Reading(template("qwen3", tokenizer), tokenizer, tools=TOOLS, single=True), HERMES * 2, 1)
    assert len(single[2]) == 1


def test_without_functions_a_call_is_text(tokenizer: Tokenizer) -> None:
    assert read(Reading(template("qwen3", tokenizer), tokenizer), HERMES, 1)[0] == HERMES


def test_a_thought_that_the_prompt_began(tokenizer: Tokenizer) -> None:
    reading = Reading(template("qwen3", tokenizer), tokenizer, thinks=True)
    assert not reading.plain
    assert read(reading, "\nHm.</think>\nYes.", 1)[:2] == ("Yes.", "Hm.")


def test_stop_strings_end_what_is_told(tokenizer: Tokenizer) -> None:
    reading = Reading(template("qwen3", tokenizer), tokenizer, stops=("STOP",), tools=TOOLS)
    content, *_, parts = read(reading, "One. STOP two", 1)
    assert content.rstrip() == "One."
    assert "S" not in "".join(text for _, text in parts)


def test_a_call_that_was_forced_is_its_json(tokenizer: Tokenizer) -> None:
    reading = Reading(template("qwen3", tokenizer), tokenizer, tools=TOOLS, forced=True)
    assert read(reading, '{"name": "f", "arguments": {"x": "1"}}', 1) == ("", "", [("f", {"x": "1"})], [])
    assert read(reading, '{"name": "f", "argu', 1)[0] == '{"name": "f", "argu', "what was cut is told as text"


def test_channels_of_gpt_oss(tokenizer: Tokenizer) -> None:
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    name = next(name for name, family in families().items() if family.tools == "harmony")
    assert read(Reading(template(name, tokenizer), tokenizer), text, 1)[:2] == ("Yes.", "Hm.")


def test_every_format_has_signs_that_its_calls_begin_with(tokenizer: Tokenizer) -> None:
    assert set(SIGNS) == set(FORMATS)
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "1"}}}
    question = {"role": "user", "content": "q"}
    for family in families().values():
        if family.tools is None:
            continue
        form = ChatTemplate(family.name, family.source, {"bos_token": "<s>", "eos_token": "</s>"}, family=family)
        asked = form.render([question], TOOLS, add_generation_prompt=True)
        text = form.render([question, {"role": "assistant", "content": "", "tool_calls": [call]}], TOOLS).removeprefix(asked)
        assert any(sign in text for sign in SIGNS[family.tools]), family.name


def test_arguments_are_json_in_a_text(tokenizer: Tokenizer) -> None:
    from luthier.chat.tools import Call

    made = call_message(Call("f", {"x": "世"}))
    assert made["function"] == {"name": "f", "arguments": '{"x": "世"}'}
    assert made["id"].startswith("call_")
    assert call_message(Call("f", {}, "abc"))["id"] == "abc"
