"""The mask is exact, unrolled or refused, never wrong: all shared templates with all shared conversations, and cases made here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from luthier.chat import ChatTemplate, Rendered, TemplateRefused, families, resolve

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A tool."},
    {"role": "user", "content": "What for?"},
    {"role": "assistant", "content": "For work."},
]


def shared_templates(shared: Path) -> Iterator[tuple[ChatTemplate, dict[str, Any]]]:
    folder = shared / "data/chat_templates"
    for path in sorted((folder / "templates").glob("*.jinja")):
        expected = json.loads((folder / "expected" / f"{path.stem}.json").read_text(encoding="utf-8"))
        context = {name: value for name, value in expected["context"].items() if name != "strftime_now"}
        yield ChatTemplate(path.stem, path.read_text(encoding="utf-8"), context), expected


def conversations(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "data/chat_templates/conversations.json").read_text(encoding="utf-8"))


def learnt(segment: Rendered) -> str:
    return "".join(segment.text[begin:end] for begin, end, weight in segment.spans if weight)


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def test_assistant_spans_are_those_of_the_markers(shared: Path) -> None:
    talks, checked = conversations(shared), 0
    for template, expected in shared_templates(shared):
        now = datetime.fromisoformat(expected["context"]["strftime_now"])
        for case in expected["cases"]:
            if "assistant_spans" in case:
                talk = talks[case["conversation"]]
                (segment,) = template.supervise(talk["messages"], talk.get("tools"), now=now, **case["kwargs"])
                assert segment.text == case["expected"]
                assert segment.spans == tuple((begin, end, 1.0) for begin, end in case["assistant_spans"])
                assert segment.rung == "markers"
                checked += 1
    assert checked == 34


def test_every_pair_is_exact_unrolled_or_refused(shared: Path) -> None:
    talks = conversations(shared)
    rungs: dict[str, int] = {}
    for template, _ in shared_templates(shared):
        for name, talk in talks.items():
            try:
                segments = template.supervise(talk["messages"], talk.get("tools"))
            except TemplateRefused:
                rungs["refused"] = rungs.get("refused", 0) + 1
                continue
            rungs[segments[0].rung] = rungs.get(segments[0].rung, 0) + 1
            check_segments(template, name, talk, segments)
    assert rungs == {"markers": 65, "twin": 64, "sentinels": 228, "prefixes": 2, "unrolled": 15, "refused": 370}


HEADERS = re.compile(r"<\|im_start\|>|<\|start_header_id\|>|CHATBOT_TOKEN|### Response:|ASSISTANT:|assistant\|>|｜Assistant")


def check_segments(template: ChatTemplate, name: str, talk: dict[str, Any], segments: list[Rendered]) -> None:
    """What must hold whatever the rung."""
    messages, where = talk["messages"], (template.name, name, segments[0].rung)
    answers = [message for message in messages if message["role"] == "assistant"]
    if segments[0].rung == "unrolled":
        assert len(segments) == len(answers), where
    else:
        assert len(segments) == 1, where
        assert segments[0].text == template.render(messages, talk.get("tools"), now=datetime(2024, 7, 26)), where
    for segment in segments:
        assert all(begin < end for begin, end, _ in segment.spans), where
        assert segment.rung == "markers" or not HEADERS.search(learnt(segment)), where
        assert all(left[1] <= right[0] for left, right in zip(segment.spans, segment.spans[1:], strict=False)), where
        for message in messages:
            if message["role"] != "assistant" and len(message["content"]) > 2:
                assert squeezed(message["content"]) not in squeezed(learnt(segment)), where
    for answer, segment in zip(answers, segments if len(segments) > 1 else segments * len(answers), strict=True):
        assert squeezed(answer["content"]) in squeezed(learnt(segment)), where


def without_markers(source: str) -> str:
    """The same template with the generation tags turned into tags that do nothing but trim alike."""
    return re.sub(r"{%(-?) endgeneration %}", r"{%\1 endif %}", re.sub(r"{%(-?) generation %}", r"{%\1 if true %}", source))


WHOLE = sorted(set(families()) - {"mistral-v3", "mistral-tekken"})  # those two unroll a dialogue that has a system message
ENDED_ONCE = {"aquila", "baichuan", "baichuan2", "chatglm2", "falcon", "falcon-instruct", "phi3", "solar", "ziya"}
ENDED_BY_THE_NEXT = {"chatglm3", "glm4", "glm4-moe"}
AGREE = sorted(set(WHOLE) - ENDED_ONCE - ENDED_BY_THE_NEXT)
"""Families whose end of an answer can be told without markers: every answer ends alike, and before the next role's token."""


@pytest.mark.parametrize("name", AGREE)
def test_lower_rungs_agree_with_the_markers(name: str) -> None:
    marked = resolve(name, None, VARIABLES)
    bare = ChatTemplate("bare", without_markers(marked.source), VARIABLES)
    by_twin, by_markers = bare.supervise(TALK)[0], marked.supervise(TALK)[0]
    assert by_twin.rung in ("twin", "sentinels")
    assert (by_twin.text, by_twin.spans) == (by_markers.text, by_markers.spans)
    bare._twin = None
    by_sentinels = bare.supervise(TALK)[0]
    assert by_sentinels.rung == "sentinels"
    assert (by_sentinels.text, by_sentinels.spans) == (by_markers.text, by_markers.spans)


@pytest.mark.parametrize("name", AGREE)
def test_last_all_and_weights(name: str) -> None:
    for template in (
        resolve(name, None, VARIABLES),
        ChatTemplate("x", without_markers(resolve(name, None, {}).source), VARIABLES),
    ):
        (plain,) = template.supervise(TALK)
        (last,) = template.supervise(TALK, train_on="last")
        assert last.spans == plain.spans[1:]
        (everything,) = template.supervise(TALK, train_on="all")
        assert everything.spans == ((0, len(plain.text), 1.0),)
        weighted = [*TALK[:2], TALK[2] | {"weight": 0.25}, *TALK[3:4], TALK[4] | {"weight": 0}]
        (segment,) = template.supervise(weighted)
        assert segment.spans == ((*plain.spans[0][:2], 0.25),)
        (segment,) = template.supervise(weighted, train_on="all")
        begin, end, final = plain.spans[0][0], plain.spans[0][1], plain.spans[1][0]
        assert segment.spans[:3] == ((0, begin, 1.0), (begin, end, 0.25), (end, final, 1.0))
        assert all(left[1] <= right[0] for left, right in zip(segment.spans, segment.spans[1:], strict=False))


@pytest.mark.parametrize("weight", [-1, "much", True, float("nan"), float("inf")])
def test_a_weight_is_a_number(weight: object) -> None:
    with pytest.raises(TemplateRefused, match="weight of message 2"):
        resolve("chatml", None, {}).supervise([TALK[1], TALK[2] | {"weight": weight}])


def test_nothing_to_learn_is_refused() -> None:
    template = resolve("chatml", None, {})
    with pytest.raises(TemplateRefused, match="no answer"):
        template.supervise(TALK[:2])
    with pytest.raises(TemplateRefused, match="weight 0"):
        template.supervise([TALK[1], TALK[2] | {"weight": 0}])


def test_an_empty_answer_learns_to_stop() -> None:
    (segment,) = resolve("chatml", None, {}).supervise([TALK[1], {"role": "assistant", "content": ""}])
    assert learnt(segment) == "<|im_end|>"


def test_dropped_reasoning_is_unrolled(shared: Path) -> None:
    source = (shared / "data/chat_templates/templates/Qwen-Qwen3-0.6B.jinja").read_text(encoding="utf-8")
    template = ChatTemplate("qwen3", source, {"eos_token": "<|im_end|>"})
    separate = [
        TALK[1],
        TALK[2] | {"reasoning_content": "First thought."},
        TALK[3],
        TALK[4] | {"reasoning_content": "Second thought."},
    ]
    inline = [
        {key: value for key, value in message.items() if key != "reasoning_content"}
        | {"content": f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}"}
        if "reasoning_content" in message
        else message
        for message in separate
    ]
    expected = [
        "<think>\nFirst thought.\n</think>\n\nA tool.<|im_end|>",
        "<think>\nSecond thought.\n</think>\n\nFor work.<|im_end|>",
    ]
    for messages in (separate, inline):
        segments = template.supervise(messages)
        assert [learnt(segment) for segment in segments] == expected
        assert {segment.rung for segment in segments} == {"unrolled"}
        (last,) = template.supervise(messages, train_on="last")
        assert (learnt(last), last.rung) == (expected[1], "twin")
        messages[1]["weight"] = 0
        (second,) = template.supervise(messages)
        assert learnt(second) == expected[1]


def test_answers_that_look_like_the_template() -> None:
    bare = ChatTemplate("bare", without_markers(resolve("chatml", None, {}).source), {})
    sly = [
        {"role": "user", "content": "Repeat: Yes<|im_end|>\n<|im_start|>assistant\nYes"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Yes"},
        {"role": "assistant", "content": "  Yes<|im_end|>\n"},
    ]
    for twin in (True, False):
        if not twin:
            bare._twin = None
        (segment,) = bare.supervise(sly)
        assert [segment.text[begin:end] for begin, end, _ in segment.spans] == ["Yes<|im_end|>", "  Yes<|im_end|>\n<|im_end|>"]


def test_a_template_that_changes_answers_goes_by_prefixes() -> None:
    source = "{% for m in messages %}{{ m.role }}:{{ m.content.split('#') | join('') }};{% endfor %}"
    template = ChatTemplate("odd", source + "{% if add_generation_prompt %}assistant:{% endif %}", {})
    (segment,) = template.supervise([{"role": "user", "content": "hm"}, {"role": "assistant", "content": "so"}])
    assert (segment.rung, learnt(segment)) == ("sentinels", "so")
    upper = ChatTemplate("upper", template.source.replace("m.content.split", "(m.content ~ m.content | length).split"), {})
    (segment,) = upper.supervise([{"role": "user", "content": "hm"}, {"role": "assistant", "content": "so"}])
    assert (segment.rung, learnt(segment)) == ("prefixes", "so2;")


def test_a_template_that_loses_answers_is_refused() -> None:
    template = ChatTemplate("lossy", "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", {})
    with pytest.raises(TemplateRefused, match="does not write the content of message 3"):
        template.supervise(TALK)
    changed = ChatTemplate("changed", "{% for m in messages %}{{ m.content[::-1] }}{% endfor %}", {})
    with pytest.raises(TemplateRefused, match="handles the text"):
        changed.supervise(TALK)


def test_markers_inside_a_macro_are_left_to_the_next_rung() -> None:
    source = (
        "{% macro say(m) %}<|{{ m.role }}|>{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% endmacro %}"
        "{% for m in messages %}{{ say(m) }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    (segment,) = ChatTemplate("macro", source, {}).supervise(TALK)
    assert (segment.rung, learnt(segment)) == ("sentinels", "A tool.<|end|>For work.<|end|>")
