"""Families, `resolve`, and what ends a turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.chat import ChatTemplate, TemplateRefused, render, resolve
from luthier.errors import UserError

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
ASK = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
PAIR = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def test_qwen_is_qwen(shared: Path) -> None:
    source = (shared / "data/chat_templates/templates/Qwen-Qwen2.5-7B-Instruct.jinja").read_text(encoding="utf-8")
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "é", "y": [1]}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    results = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    turns = [PAIR[0], {"role": "assistant", "content": "", "tool_calls": [call, call]}, *results, PAIR[1]]
    spoken = [*turns[:1], {"role": "assistant", "content": "Wait.", "tool_calls": [call]}, *results[:1], *ASK]
    for messages in (ASK, PAIR, turns, spoken, turns[:3], [ASK[0], *turns]):
        for given in (None, tools):
            for prompt in (False, True):
                ours = resolve("qwen", None, {}).render(messages, given, prompt)
                assert ours == render(source, messages, given, add_generation_prompt=prompt)


def test_auto_takes_the_tokenizers_or_says_that_there_is_none() -> None:
    assert resolve("auto", "{{ messages[0].content }}", {}).render(PAIR) == "Q"
    fallback = resolve("auto", None, VARIABLES)
    assert fallback.name == "default"
    assert fallback.note == "the tokenizer has no chat template; the family `default` is used"


def test_a_file_is_a_template(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages[0]['content'] }}!", encoding="utf-8")
    assert resolve(str(path), None, {}).render(PAIR) == "Q!"
    path.write_text("{{", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.jinja.*line 1"):
        resolve(str(path), None, {})
    path.write_text("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.jinja.*nested too deeply"):
        resolve(str(path), None, {})
    path.write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"mine\.jinja.*not UTF-8"):
        resolve(str(path), None, {})
    path.write_bytes(b"\xef\xbb\xbf{{ messages[0]['content'] }}")
    assert resolve(str(path), None, {}).render(PAIR) == "Q"
    with pytest.raises(UserError, match="cannot be read"):
        resolve(str(tmp_path / "none.jinja"), None, {})


def test_a_file_of_another_ending_is_refused_rather_than_looked_for_beside_the_command() -> None:
    with pytest.raises(UserError, match=r"A template file ends in `\.jinja`"):
        resolve("templates/mine.j2", None, {})


def test_a_refusal_is_one_line() -> None:
    with pytest.raises(TemplateRefused) as caught:
        render("{{ raise_exception('No.\n\n  Never.') }}", PAIR)
    assert str(caught.value) == "No. Never."


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean `alpaca`"):
        resolve("alpacca", None, {})


@pytest.mark.parametrize(
    ("name", "end", "stops"),
    [
        ("Qwen-Qwen3-0.6B", "<|im_end|>", ("<|im_end|>", "</s>")),
        ("meta-llama-Llama-3.1-8B-Instruct", "<|eot_id|>", ("<|eot_id|>", "</s>")),
        ("google-gemma-2-2b-it", "<end_of_turn>", ("<end_of_turn>", "</s>")),
        ("GLM-4.6", "</s>", ("<|user|>", "</s>")),
        ("openai-gpt-oss-120b", "<|return|>", ("<|return|>", "</s>")),
        ("cz-solar-instruct", "</s>", ("### User:", "</s>")),
    ],
)
def test_ends_of_foreign_templates(shared: Path, name: str, end: str, stops: tuple[str, ...]) -> None:
    source = (shared / f"data/chat_templates/templates/{name}.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(name, source, VARIABLES)
    assert (template.end_of_turn, template.stop_strings) == (end, stops)
