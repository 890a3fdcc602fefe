"""Families, `resolve`, and what ends a turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.chat import ChatTemplate, TemplateRefused, families, render, resolve
from luthier.errors import UserError

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
ASK = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
PAIR = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]

PROMPTS = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
    "qwen": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
    "llama2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "alpaca": "<s>S\n\n### Instruction:\nQ\n\n### Response:\n",
    "vicuna": "<s>S USER: Q ASSISTANT:",
    "default": "<s>System: S</s>\nHuman: Q</s>\nAssistant:",
    "plain": "<s>SQ",
}
DEFAULT_SYSTEM = {
    "qwen": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n",
    "alpaca": "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n",
    "vicuna": "<s>A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
}


def test_every_family_is_tested() -> None:
    assert set(families()) == set(PROMPTS)


@pytest.mark.parametrize("name", PROMPTS)
def test_families_write_their_format(name: str) -> None:
    template = resolve(name, "ignored", VARIABLES)
    assert template.render(ASK, add_generation_prompt=True) == PROMPTS[name]
    assert template.render(PAIR).startswith(DEFAULT_SYSTEM.get(name, ""))
    prompt, whole = template.render(PAIR[:1], add_generation_prompt=True), template.render(PAIR)
    assert whole.startswith(prompt)
    assert whole[len(prompt) :].strip().startswith("A")
    assert whole.rstrip().endswith(template.end_of_turn)
    assert template.end_of_turn in template.stop_strings


@pytest.mark.parametrize("name", PROMPTS)
def test_families_refuse_what_they_would_lose(name: str) -> None:
    template = resolve(name, None, VARIABLES)
    with pytest.raises(TemplateRefused):
        template.render([{"role": "user", "content": [{"type": "image"}]}])
    if name != "qwen":
        with pytest.raises(TemplateRefused):
            template.render([PAIR[0], {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}])


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
    with pytest.raises(UserError, match="Did you mean `chatml`"):
        resolve("chatlm", None, {})


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
