"""What each family writes, letter by letter, and that transformers' own renderer writes the same from the same source."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from luthier.chat import ChatTemplate, TemplateRefused, families, resolve
from luthier.chat.families import by_any_name

NOW = datetime(2024, 7, 26)
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
ASK = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
TALK = [*ASK, {"role": "assistant", "content": "A"}, {"role": "user", "content": "R"}, {"role": "assistant", "content": "B"}]
LAST = {"role": "assistant", "content": "B"}
FUNCTION = {"name": "f", "arguments": {"x": [1, "é"]}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": FUNCTION}]}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}]

CHATML = (
    "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n"
)
LLAMA3 = "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
LLAMA3_REST = (
    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nR<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
HY = ("<｜hy_begin▁of▁sentence｜>", "<｜hy_place▁holder▁no▁3｜>", "<｜hy_place▁holder▁no▁2｜>")

WRITES = {  # the dialogue up to the last answer, and from there; what is learnt of the last answer is the second part without its tail
    "default": ("<s>System: S</s>\nHuman: Q</s>\nAssistant:A</s>\nHuman: R</s>\nAssistant:", "B</s>\n"),
    "plain": ("<s>SQA</s>R", "B</s>"),
    "alpaca": ("<s>S\n\n### Instruction:\nQ\n\n### Response:\nA</s>\n\n### Instruction:\nR\n\n### Response:\n", "B</s>\n\n"),
    "vicuna": ("<s>S USER: Q ASSISTANT: A</s>USER: R ASSISTANT:", " B</s>"),
    "llama2": ("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s><s>[INST] R [/INST]", " B </s>"),
    "llama2-zh": ("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s><s>[INST] R [/INST]", " B </s>"),
    "llama3": (LLAMA3 + LLAMA3_REST, "B<|eot_id|>"),
    "llama3.1": (
        LLAMA3.replace("S<", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nS<") + LLAMA3_REST,
        "B<|eot_id|>",
    ),
    "llama4": (
        (LLAMA3 + LLAMA3_REST)
        .replace("start_header_id", "header_start")
        .replace("end_header_id", "header_end")
        .replace("eot_id", "eot"),
        "B<|eot|>",
    ),
    "mistral-v1": ("<s> [INST] S\n\nQ [/INST] A</s> [INST] R [/INST]", " B</s>"),
    "mistral-v3": ("<s>[INST] Q[/INST] A</s>[INST] S\n\nR[/INST]", " B</s>"),
    "mistral-tekken": ("<s>[INST]Q[/INST]A</s>[INST]S\n\nR[/INST]", "B</s>"),
    "mistral-v7": ("<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]Q[/INST]A</s>[INST]R[/INST]", "B</s>"),
    "mistral-v13": ("<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]Q[/INST]A</s>[INST]R[/INST]", "B</s>"),
    **dict.fromkeys(
        ("chatml", "qwen1.5", "qwen2.5", "qwen3-instruct", "yi", "smollm", "smollm2"),
        (CHATML, "B<|im_end|>\n"),
    ),
    **dict.fromkeys(("internlm2", "minicpm3"), ("<s>" + CHATML, "B<|im_end|>\n")),
    "qwen3": (CHATML, "<think>\n\n</think>\n\nB<|im_end|>\n"),
    "qwen3-nothink": (CHATML + "<think>\n\n</think>\n\n", "B<|im_end|>\n"),
    "internlm": ("<s><|System|>:S\n<|User|>:Q\n<|Bot|>:A<eoa>\n<|User|>:R\n<|Bot|>:", "B<eoa>\n"),
    "minicpm": ("<s>S<用户>Q<AI>A</s><用户>R<AI>", "B</s>"),
    "baichuan": ("S<reserved_102>Q<reserved_103>A<reserved_102>R<reserved_103>", "B</s>"),
    "baichuan2": ("S<reserved_106>Q<reserved_107>A<reserved_106>R<reserved_107>", "B</s>"),
    "chatglm2": ("[gMASK]sopS\n\n[Round 1]\n\n问：Q\n\n答：A\n\n[Round 2]\n\n问：R\n\n答：", "B</s>"),
    "chatglm3": ("[gMASK]sop<|system|>\n S<|user|>\n Q<|assistant|>\n A<|user|>\n R<|assistant|>", "\n B<|user|>"),
    "glm4": ("[gMASK]<sop><|system|>\nS<|user|>\nQ<|assistant|>\nA<|user|>\nR<|assistant|>", "\nB<|user|>"),
    "glm4-moe": (
        "[gMASK]<sop><|system|>\nS<|user|>\nQ<|assistant|>\n<think></think>\nA<|user|>\nR<|assistant|>",
        "\n<think></think>\nB<|user|>",
    ),
    "deepseek": ("<s>S\n\nUser: Q\n\nAssistant: A</s>User: R\n\nAssistant:", " B</s>"),
    "deepseek-coder": (
        "<s>S### Instruction:\nQ\n### Response:\nA\n<|EOT|>\n### Instruction:\nR\n### Response:\n",
        "B\n<|EOT|>\n",
    ),
    "deepseek-v3": ("<s>S<｜User｜>Q<｜Assistant｜>A<｜end▁of▁sentence｜><｜User｜>R<｜Assistant｜>", "B<｜end▁of▁sentence｜>"),
    "deepseek-r1": (
        "<s>S<｜User｜>Q<｜Assistant｜>A<｜end▁of▁sentence｜><｜User｜>R<｜Assistant｜><think>\n",
        "\n</think>\n\nB<｜end▁of▁sentence｜>",
    ),
    "falcon": ("S\nUser: Q\nFalcon: A\nUser: R\nFalcon:", " B</s>"),
    "falcon-instruct": ("S\n\nUser: Q\n\nAssistant: A\n\nUser: R\n\nAssistant:", " B</s>"),
    "gemma": (
        "<s><start_of_turn>user\nS\n\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
        "<start_of_turn>user\nR<end_of_turn>\n<start_of_turn>model\n",
        "B<end_of_turn>\n",
    ),
    "phi3": (
        "<|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nR<|end|>\n<|assistant|>\n",
        "B<|end|>\n</s>",
    ),
    "phi4": (
        "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>Q<|im_end|><|im_start|>assistant<|im_sep|>A<|im_end|>"
        "<|im_start|>user<|im_sep|>R<|im_end|><|im_start|>assistant<|im_sep|>",
        "B<|im_end|>",
    ),
    "xverse": ("SHuman: Q\n\nAssistant: A</s>Human: R\n\nAssistant:", " B</s>"),
    "yuan": ("SQ<sep>A<eod>\nR<sep>", "B<eod>\n"),
    "zephyr": ("<|system|>\nS</s>\n<|user|>\nQ</s>\n<|assistant|>\nA</s>\n<|user|>\nR</s>\n<|assistant|>\n", "B</s>\n"),
    "openchat": (
        "<s>S<|end_of_turn|>GPT4 Correct User: Q<|end_of_turn|>GPT4 Correct Assistant: A<|end_of_turn|>"
        "GPT4 Correct User: R<|end_of_turn|>GPT4 Correct Assistant:",
        " B<|end_of_turn|>",
    ),
    "solar": ("<s>### System:\nS\n\n### User:\nQ\n\n### Assistant:\nA\n\n### User:\nR\n\n### Assistant:\n", "B</s>"),
    "orion": ("<s>S\n\nHuman: Q\n\nAssistant: </s>A</s>Human: R\n\nAssistant: </s>", "B</s>"),
    "command-r": (
        "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>S<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Q<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>A<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>R<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "B<|END_OF_TURN_TOKEN|>",
    ),
    "granite": (
        "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>Q<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>A<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>R<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>",
        "B<|end_of_text|>\n",
    ),
    "hunyuan": ("<|startoftext|>S<|extra_4|>Q<|extra_0|>A<|eos|><|startoftext|>R<|extra_0|>", "B<|eos|>"),
    "hunyuan-small": (
        f"{HY[0]}S{HY[1]}<｜hy_User｜>Q<｜hy_Assistant｜>A{HY[2]}<｜hy_User｜>R<｜hy_Assistant｜>",
        f"B{HY[2]}",
    ),
    "gpt-oss": (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
        "Current date: 2024-07-26\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be included for "
        "every message.<|end|><|start|>developer<|message|># Instructions\n\nS\n\n<|end|><|start|>user<|message|>Q<|end|>"
        "<|start|>assistant<|channel|>final<|message|>A<|end|><|start|>user<|message|>R<|end|><|start|>assistant",
        "<|channel|>final<|message|>B<|return|>",
    ),
    "starchat": (
        "<|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>A<|end|>\n<|user|>\nR<|end|>\n<|assistant|>",
        "B<|end|>\n",
    ),
    "belle": ("<s>SHuman: Q\n\nBelle: A</s>\n\nHuman: R\n\nBelle:", " B</s>\n\n"),
    "ziya": ("S<human>:Q\n<bot>:A\n<human>:R\n<bot>:", "B</s>"),
    "telechat": ("S<_user>Q<_bot>A</s><_user>R<_bot>", "B</s>"),
    "atom": ("S<s>Human: Q\n</s><s>Assistant:A\n</s><s>Human: R\n</s><s>Assistant:", "B\n</s>"),
    "aquila": ("S###Human: Q###Assistant:A###Human: R###Assistant:", "B</s>"),
}


def test_every_family_is_written_down() -> None:
    assert set(families()) == set(WRITES)
    names = [name for family in families().values() for name in (family.name, *family.aliases)]
    assert len(names) == len(set(names)) == len(by_any_name())


@pytest.mark.parametrize("name", WRITES)
def test_families_write_their_format(name: str) -> None:
    template = resolve(name, "ignored", VARIABLES)
    before, after = WRITES[name]
    assert template.render(TALK, now=NOW) == before + after
    assert template.render(TALK[:-1], add_generation_prompt=True, now=NOW) == before
    assert template.end_of_turn in after
    assert template.end_of_turn in template.stop_strings


@pytest.mark.parametrize("name", WRITES)
def test_families_learn_answers_and_their_end(name: str) -> None:
    template = resolve(name, None, VARIABLES)
    segment = template.supervise(TALK)[-1]
    begin, end, weight = segment.spans[-1]
    before, after = WRITES[name]
    assert (segment.text, weight) == (before + after, 1.0)
    tail = after.split("B", 1)[1]
    learnt = after[: len(after) - len(tail)] + tail[: tail.index(template.end_of_turn) + len(template.end_of_turn)]
    assert segment.text[begin:end] == learnt
    assert len(template.supervise(TALK)) == (2 if name in ("mistral-v3", "mistral-tekken") else 1)


@pytest.mark.parametrize("name", WRITES)
def test_transformers_writes_the_same(name: str) -> None:
    """The source that travels with a model is what vLLM and transformers render, so they must agree about it."""
    family = families()[name]
    talks = [TALK, TALK[1:], ASK, [ASK[1], LAST]]
    talks += [[ASK[1], CALL, {"role": "tool", "content": "1", "name": "f"}, LAST]] if "tool" in family.roles else []
    for talk in talks:
        for tools in (None, TOOLS) if "tool" in family.roles else (None,):
            for prompt in (False, True):
                given: dict[str, Any] = {"chat_template": family.source, "tools": tools, "add_generation_prompt": prompt}
                theirs, _ = render_jinja_template([talk], **given, **VARIABLES)
                assert ChatTemplate(name, family.source, VARIABLES).render(talk, tools, prompt) == theirs[0]


@pytest.mark.parametrize("name", WRITES)
def test_a_default_system_message_is_said_where_none_is_given(name: str) -> None:
    family, template = families()[name], resolve(name, None, VARIABLES)
    if family.system:
        said = template.render(ASK[1:], now=NOW)
        assert said == template.render([{"role": "system", "content": family.system}, ASK[1]], now=NOW)
        assert family.system.strip() in said
    assert template.render(ASK, now=NOW) != template.render(ASK[1:], now=NOW)


@pytest.mark.parametrize("name", WRITES)
def test_families_refuse_what_they_would_lose(name: str) -> None:
    template = resolve(name, None, VARIABLES)
    with pytest.raises(TemplateRefused):
        template.render([{"role": "user", "content": [{"type": "image"}]}])
    if families()[name].tools is None:
        with pytest.raises(TemplateRefused):
            template.render([ASK[1], CALL])
