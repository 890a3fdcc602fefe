"""Calls of functions survive the way into text and back, in every format, for all rows of the shared tool data."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from luthier.chat import ChatTemplate, families, resolve
from luthier.chat.tools import FORMATS, parse, recognise
from luthier.data.examples import Origin
from luthier.data.formats import sharegpt

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
ENDS = ("</s>", "<|im_end|>", "<|eot_id|>", "<|eot|>", "<｜end▁of▁sentence｜>", "<|user|>", "<|observation|>", "<|end_of_text|>")
ENDS += ("<|call|>", "<|return|>", "<|end|>", "<end_of_turn>")
SPEAKERS = ("default", "alpaca", "gemma", "qwen2.5", "qwen3", "llama3", "llama3.1", "mistral-v3", "mistral-v13", "deepseek-v3")
SPEAKERS += ("deepseek-r1", "glm4", "chatglm3", "glm4-moe", "granite", "gpt-oss")

Talk = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def glaive(shared: Path) -> Iterator[Talk]:
    for name in ("en", "zh"):
        rows = json.loads((shared / f"data/llamafactory/glaive_toolcall_{name}_demo.json").read_text(encoding="utf-8"))
        for row in rows:
            (example,) = sharegpt.parse(row, Origin("", 1, 0), {})
            yield [dict(message) for message in example.messages], list(example.tools or ())


def berkeley(shared: Path) -> Iterator[Talk]:
    """Questions and the calls that answer them: the first of the values that count as right."""
    for name in ("simple_python", "multiple", "parallel_multiple"):
        rows, answers = (lines(shared / f"data/toolcall/bfcl_v4_{name}{kind}.jsonl") for kind in ("", "_answers"))
        for row, answer in zip(rows, answers, strict=True):
            calls = []
            for call in answer["ground_truth"]:
                ((function, arguments),) = call.items()
                calls.append((function, {key: values[0] for key, values in arguments.items() if values and values[0] != ""}))
            yield [*row["question"][0], asked(*calls)], [wrapped(tool) for tool in row["function"]]


def multi_turn(shared: Path) -> Iterator[Talk]:
    """Python calls; positional arguments get their number for a name."""
    rows = lines(shared / "data/toolcall/bfcl_v4_multi_turn_base.jsonl")
    for row, answer in zip(rows, lines(shared / "data/toolcall/bfcl_v4_multi_turn_base_answers.jsonl"), strict=True):
        messages: list[dict[str, Any]] = []
        for question, sources in zip(row["question"], answer["ground_truth"], strict=True):
            nodes = [ast.parse(source, mode="eval").body for source in sources]
            calls = [(ast.unparse(node.func), keywords(node)) for node in nodes if isinstance(node, ast.Call)]
            messages += [*question, asked(*calls) if calls else {"role": "assistant", "content": "Done."}]
        yield messages, described([call for message in messages for call in message.get("tool_calls", ())])


def toolalpaca(shared: Path) -> Iterator[Talk]:
    """Questions and calls; the functions are described in prose."""
    for api in json.loads((shared / "data/toolcall/toolalpaca_eval_simulated.json").read_text(encoding="utf-8")):
        for question, answers in zip(api["Instructions"], api["Golden_Answers"], strict=True):
            calls = [(answer["Action"], mapping(answer["Action_Input"])) for answer in answers]
            message = asked(*calls)
            yield [{"role": "user", "content": question}, message], described(message["tool_calls"])


def described(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Schemas that fit some calls: formats without quotation marks need them to tell text from numbers."""
    known: dict[str, dict[str, Any]] = {}
    for call in calls:
        properties = known.setdefault(call["function"]["name"], {})
        for key, value in call["function"]["arguments"].items():
            properties[key] = {"type": "string" if isinstance(value, str) else "number"}
    return [
        wrapped({"name": name, "description": name, "parameters": {"type": "object", "properties": properties}})
        for name, properties in known.items()
    ]


def mapping(text: str) -> dict[str, Any]:
    """Arguments; some rows hold a sketch of them that is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return {"input": text}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def keywords(node: ast.Call) -> dict[str, Any]:
    named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
    return {**{str(number): ast.literal_eval(value) for number, value in enumerate(node.args)}, **named}


def asked(*calls: tuple[str, Any]) -> dict[str, Any]:
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "content": "", "tool_calls": made}


def wrapped(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": function}


def answers(template: ChatTemplate, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[str]:
    """What the model writes for each answer, without its end of turn."""
    written = []
    for segment in template.supervise(messages, tools or None):
        for begin, end, _ in segment.spans:
            text = segment.text[begin:end]
            written.append(next((text.removesuffix(sign) for sign in ENDS if text.endswith(sign)), text))
    return written


def check(name: str, talks: Iterator[Talk]) -> int:
    """Every answer of every conversation comes back; returns the number of calls."""
    template, counted = resolve(name, None, VARIABLES), 0
    for messages, tools in talks:
        turns = [message for message in messages if message["role"] == "assistant"]
        texts = answers(template, messages, tools)
        assert len(texts) == len(turns)
        for turn, text in zip(turns, texts, strict=True):
            found = template.parse(text, tools)
            calls = [(call["function"]["name"], call["function"]["arguments"]) for call in turn.get("tool_calls", ())]
            assert [(call.name, call.arguments) for call in found.calls] == calls, text
            assert found.content.strip() == turn["content"].strip()
            counted += len(calls)
    return counted


@pytest.mark.parametrize("name", SPEAKERS)
def test_rows_survive_the_round_trip(shared: Path, name: str) -> None:
    talks = [*glaive(shared), *berkeley(shared), *toolalpaca(shared), *multi_turn(shared)]
    assert check(name, iter(talks[::12])) > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", SPEAKERS)
def test_all_rows_survive_the_round_trip(shared: Path, name: str) -> None:
    talks = [*glaive(shared), *berkeley(shared), *toolalpaca(shared), *multi_turn(shared)]
    assert check(name, iter(talks)) > 1000


def test_every_format_is_spoken() -> None:
    assert {families()[name].tools for name in SPEAKERS} == set(FORMATS) - {"qwen-xml"}
    assert {family.tools for family in families().values()} <= {*FORMATS, None}


def test_few_shot_answers_of_hermes_are_calls(shared: Path) -> None:
    for entry in json.loads((shared / "data/toolcall/hermes_few_shot.json").read_text(encoding="utf-8")):
        said = entry["example"].split("ASSISTANT:\n")[1].rstrip("`\n")
        answer = parse(said, "hermes")
        assert answer.content == ""
        assert {call.name for call in answer.calls} <= {"calculate_distance", "generate_password"}
        assert len(answer.calls) == 1


def test_formats_of_foreign_templates_are_told(shared: Path) -> None:
    expected = {
        "Qwen-Qwen2.5-7B-Instruct": "hermes",
        "Qwen3-Coder": "qwen-xml",
        "GLM-4.6": "glm4-moe",
        "openai-gpt-oss-120b": "harmony",
        "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
        "deepseek-ai-DeepSeek-V3.1": "deepseek",
        "meta-llama-Llama-3.1-8B-Instruct": "llama3",
        "cz-alpaca": None,
    }
    for name, form in expected.items():
        source = (shared / f"data/chat_templates/templates/{name}.jinja").read_text(encoding="utf-8")
        assert recognise(source) == form
        assert ChatTemplate(name, source, VARIABLES).tool_format == form


def test_foreign_templates_are_read_back(shared: Path) -> None:
    talks = json.loads((shared / "data/chat_templates/conversations.json").read_text(encoding="utf-8"))
    for name in (
        "Qwen3-Coder",
        "Qwen3.5-4B",
        "GLM-4.6",
        "deepseek-ai-DeepSeek-V3.1",
        "mistral-common-v13",
        "openai-gpt-oss-120b",
    ):
        source = (shared / f"data/chat_templates/templates/{name}.jinja").read_text(encoding="utf-8")
        template, talk = ChatTemplate(name, source, VARIABLES), talks["tools_zh"]
        call = talk["messages"][1]["tool_calls"][0]["function"]
        text = template.render(talk["messages"], talk["tools"], now=datetime(2024, 7, 26))
        question = talk["messages"][0]["content"]
        found = template.parse(text[text.index(question) + len(question) :].split("<|observation|>")[0], talk["tools"])
        assert [(item.name, item.arguments) for item in found.calls[:1]] == [(call["name"], call["arguments"])], name


@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        ("words", "Let me see.\nAction: f\nAction Input: {}", "Let me see.", [("f", {})]),
        ("words", "Action: f\nAction Input: {", "Action: f\nAction Input: {", []),
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {"x": 1}}', "", [("f", {"x": 1})]),
        ("hermes", "<tool_call>\nnonsense\n</tool_call>", "<tool_call>\nnonsense\n</tool_call>", []),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [("f", {"x": 1})]),
        ("llama3", '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "", [("f", {}), ("g", {})]),
        ("llama3", '{"name": "f", "parameters": {}} and more', '{"name": "f", "parameters": {}} and more', []),
        ("mistral", '[{"name": "f", "arguments": {}}]', "", [("f", {})]),
        ("mistral", "[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{}", "", [("f", {})]),
        (
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "",
            [("f", {})],
        ),
        ("glm4", "\nHello.", "Hello.", []),
        ("glm4", 'f\n{"x": 1}', "", [("f", {"x": 1})]),
        ("glm4-moe", "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>5</arg_value>\n</tool_call>", "", [("f", {"x": 5})]),
        ("granite", '<|tool_call|>[{"name": "f", "arguments": {}}]', "", [("f", {})]),
        ("harmony", "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>", "", [("f", {})]),
        (
            "qwen-xml",
            "Hm.\n\n<tool_call>\n<function=f>\n<parameter=x>\n5\n</parameter>\n</function>\n</tool_call>",
            "Hm.",
            [("f", {"x": 5})],
        ),
    ],
)
def test_what_models_write(form: str, text: str, content: str, calls: list[tuple[str, Any]]) -> None:
    answer = parse(text, form)
    assert (answer.content, [(call.name, call.arguments) for call in answer.calls]) == (content, calls)


def test_the_schema_tells_text_from_numbers() -> None:
    tools = [wrapped({"name": "f", "parameters": {"properties": {"x": {"type": "string"}}}})]
    text = "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>5</arg_value>\n</tool_call>"
    assert parse(text, "glm4-moe", tools).calls[0].arguments == {"x": "5"}


def test_thoughts_are_set_apart() -> None:
    answer = parse('<think>\nHm.\n</think>\n\nYes.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "hermes")
    assert answer.message() == {
        "role": "assistant",
        "content": "Yes.",
        "reasoning_content": "Hm.",
        "tool_calls": [wrapped({"name": "f", "arguments": {}})],
    }
    said = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    assert (parse(said, "harmony").thought, parse(said, "harmony").content) == ("Hm.", "Yes.")


MARKS = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "{",
    "}",
    '"name"',
    "Action: f\nAction Input:",
    "<|channel|>final",
]
MARKS += [
    "<|message|>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<arg_key>",
    "</arg_value>",
    "</think>",
    "\n",
    "[",
]


@given(
    some.lists(some.one_of(some.sampled_from(MARKS), some.text(max_size=5)), max_size=12).map("".join),
    some.sampled_from(sorted(FORMATS)),
)
def test_nothing_a_model_writes_is_an_error(text: str, form: str) -> None:
    answer = parse(text, form)
    assert all(isinstance(call.name, str) for call in answer.calls)
