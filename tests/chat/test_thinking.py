"""Thoughts kept, stripped, dropped or only read, by explicit choice, for families and for templates of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.chat import ChatTemplate, Rendered, TemplateRefused, families, resolve
from luthier.chat.template import TRAINING_DAY
from luthier.chat.thinking import thought_of, without_thought

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
SEPARATE = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A tool.", "reasoning_content": "First thought."},
    {"role": "user", "content": "What for?"},
    {"role": "assistant", "content": "For work.", "reasoning_content": "Second thought."},
]
INLINE = [
    {"role": "assistant", "content": f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}"}
    if "reasoning_content" in message
    else message
    for message in SEPARATE
]
THINKERS = [name for name, family in families().items() if family.thinking == "dropped" and name != "gpt-oss"]


def learnt(segment: Rendered) -> str:
    return "".join(segment.text[begin:end] for begin, end, weight in segment.spans if weight)


def test_a_thought_is_found_and_taken_out() -> None:
    for messages in (SEPARATE, INLINE):
        assert thought_of(messages[1]) == "First thought."
        assert without_thought(messages[1]) == {"role": "assistant", "content": "A tool."}
    assert thought_of({"role": "assistant", "content": "2 < 3"}) == ""
    assert without_thought(SEPARATE[0]) is SEPARATE[0]


@pytest.mark.parametrize("name", THINKERS)
@pytest.mark.parametrize("messages", [SEPARATE, INLINE], ids=["separate", "inline"])
def test_each_answer_is_learnt_with_its_own_thought(name: str, messages: list[dict[str, str]]) -> None:
    """As the template has it, and stripped: two segments, in neither of which a thought stands before the answer's own."""
    template = resolve(name, None, VARIABLES)
    for thinking in ("template", "strip"):
        first, second = template.supervise(messages, thinking=thinking)  # type: ignore[arg-type]
        assert "First thought." in learnt(first)
        assert "A tool." in learnt(first)
        assert "What for?" not in first.text
        assert "First thought." not in second.text
        assert "Second thought." in learnt(second)
        assert "For work." in learnt(second)
        assert "A tool." not in learnt(second)


@pytest.mark.parametrize("name", sorted(set(families()) - {"plain", "mistral-v3", "mistral-tekken"}))
def test_every_family_keeps_thoughts_when_asked(name: str) -> None:
    template = resolve(name, None, VARIABLES)
    (segment,) = template.supervise(SEPARATE, thinking="keep")
    for text in ("First thought.", "Second thought.", "A tool.", "For work."):
        assert text in learnt(segment)
    (read,) = template.supervise(SEPARATE, thinking="keep", learn_thinking=False)
    assert read.text == segment.text
    assert "thought" not in learnt(read)
    assert "</think>" not in learnt(read)
    assert "A tool." in learnt(read)
    assert "For work." in learnt(read)


@pytest.mark.parametrize("name", sorted(families()))
@pytest.mark.parametrize("messages", [SEPARATE, INLINE], ids=["separate", "inline"])
def test_dropped_thoughts_are_nowhere(name: str, messages: list[dict[str, str]]) -> None:
    template = resolve(name, None, VARIABLES, "drop")
    segments = template.supervise(messages, thinking="drop")
    asked = [without_thought(message) for message in messages[:3]]
    assert template.render(asked, add_generation_prompt=True, now=TRAINING_DAY) in segments[-1].text
    for segment in segments:
        assert "thought" not in segment.text
        assert "think>" not in learnt(segment) or name == "deepseek-r1"  # its prompt always opens a thought; the answer closes it


def test_templates_of_models(shared: Path) -> None:
    folder = shared / "data/chat_templates/templates"
    qwen = ChatTemplate("qwen", (folder / "Qwen-Qwen3-0.6B.jinja").read_text(encoding="utf-8"), VARIABLES)
    with pytest.raises(TemplateRefused, match="does not keep the thought of message 2"):
        qwen.supervise(SEPARATE, thinking="keep")
    read = qwen.supervise(SEPARATE, learn_thinking=False)
    assert [learnt(segment) for segment in read] == ["A tool.<|im_end|>", "For work.<|im_end|>"]
    assert ["First thought." in read[0].text, "Second thought." in read[1].text] == [True, True]
    for name in ("GLM-4.7-Flash", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "deepseek-ai-DeepSeek-V4"):
        template = ChatTemplate(name, (folder / f"{name}.jinja").read_text(encoding="utf-8"), VARIABLES)
        (segment,) = template.supervise(SEPARATE, thinking="keep")
        assert segment.text.count("thought.") == 2


def test_stripping_with_one_answer_and_with_everything_learnt() -> None:
    template = resolve("chatml", None, VARIABLES)
    (last,) = template.supervise(INLINE, train_on="last", thinking="strip")
    assert "First" not in last.text
    assert "Second thought." in learnt(last)
    (whole,) = template.supervise(INLINE, train_on="all", thinking="strip")
    assert "First" not in whole.text
    weighted = [INLINE[0], INLINE[1] | {"weight": 0}, *INLINE[2:]]
    (second,) = template.supervise(weighted, thinking="strip")
    assert "For work." in learnt(second)
