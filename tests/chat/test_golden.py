"""Each family against the templates that models really came with: the same text, or a reason why not.

The golden texts were made from the models' own templates. Those of `cz-*` are another project's restatements, laid out over lines that
its readers are told to take out, which is done here too. The reasons are explained in `docs/templates.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from luthier.chat import TemplateRefused, families, render

DEFAULT = "our default system message"
WORDS = "we list functions in words, it knows none"
ORDER = "it joins two questions, we refuse them"
REFUSES = "it refuses what we can write"
END = "we write the end of the last answer, it does not"
JSON = "arguments given as text: we take them as JSON, it quotes them once more or loses them"
ESCAPED = "it writes quotation marks as HTML entities"
CALLS = "it leaves calls out"
THOUGHT = "we open the last answer with a thought, as its prompt does"
KEPT = "it keeps empty thoughts in history, which the model's own template drops"
MOVED = "it loses the system message once the answer is there"
SPACES = "it has no space before [INST]; mistral-common, which the model's makers publish, has one"
LINES = "it breaks lines where Vicuna 1.1 has spaces"
OWN = "a template of another maker: it ends questions too, or opens and closes the thought in the prompt"
PARTS = "it gives text out of order, or adds a system message of its own"

ONE_USER, TALKS = ("single_user",), ("multi_turn_en", "empty_assistant_last")
TOOLS = ("tools_user", "tools_full", "tools_result_last", "tools_string_args", "tools_zh")
CALLED = TOOLS[1:]
CALLED_AS_MAPPING = ("tools_full", "tools_result_last", "tools_zh")
NO_TOOLS = {"tools_user": WORDS, **dict.fromkeys(CALLED, REFUSES)}
EVERY = ("single_user", "system_user", "multi_turn_en", "multi_turn_zh", "reasoning", "empty_assistant_last")

GOLDEN: dict[str, tuple[str, dict[str, str]]] = {
    "cz-alpaca": ("alpaca", {**NO_TOOLS, **dict.fromkeys(("single_user", "reasoning", "empty_assistant_last"), DEFAULT)}),
    "cz-chatml": ("chatml", {**NO_TOOLS, "two_users": REFUSES}),
    "cz-falcon-instruct": ("falcon-instruct", {**NO_TOOLS, **dict.fromkeys(TALKS, END)}),
    "cz-llama-2-chat": ("llama2", NO_TOOLS),
    "cz-mistral-instruct": ("mistral-v1", {**NO_TOOLS, **dict.fromkeys(EVERY, SPACES)}),
    "mistral-common-v1_spm": ("mistral-v1", {**NO_TOOLS, "two_users": ORDER, "empty_assistant_last": REFUSES}),
    "cz-openchat-3.5": ("openchat", NO_TOOLS),
    "cz-solar-instruct": ("solar", {**NO_TOOLS, **dict.fromkeys(TALKS, END)}),
    "cz-vicuna": ("vicuna", {**NO_TOOLS, **dict.fromkeys(EVERY, LINES)}),
    "cz-zephyr": ("zephyr", NO_TOOLS),
    "Qwen-Qwen2.5-7B-Instruct": ("qwen2.5", {"tools_string_args": JSON}),
    "trl-qwen2_5_training": ("qwen2.5", {"tools_string_args": JSON}),
    "Qwen-Qwen3-0.6B": ("qwen3", {}),
    "trl-qwen3_training": ("qwen3", dict.fromkeys(("multi_turn_en", "multi_turn_zh", "reasoning", *CALLED), KEPT)),
    "trl-qwen3_instruct_2507_training": ("qwen3-instruct", {}),
    "trl-deepseekv3_training": ("deepseek-r1", {**dict.fromkeys(TOOLS, WORDS), **dict.fromkeys(TALKS, THOUGHT)}),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": (
        "deepseek-r1",
        {**dict.fromkeys(TOOLS, WORDS), **dict.fromkeys(TALKS, THOUGHT)},
    ),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": (
        "deepseek-r1",
        {**dict.fromkeys(TOOLS, WORDS), **dict.fromkeys((*EVERY, "two_users"), OWN)},
    ),
    "llama-cpp-deepseek-r1": ("deepseek-r1", {**dict.fromkeys(TOOLS, REFUSES), **dict.fromkeys((*EVERY, "two_users"), OWN)}),
    "google-gemma-2-2b-it": (
        "gemma",
        dict.fromkeys(("system_user", "multi_turn_en", "multi_turn_zh", *TOOLS), REFUSES),
    ),
    "trl-gemma3_training": ("gemma", NO_TOOLS),
    "GLM-4.6": ("glm4-moe", {**dict.fromkeys((*TALKS, "tools_full", "tools_zh"), END), "tools_string_args": JSON}),
    "trl-glm4moe_training": ("glm4-moe", {}),
    "ibm-granite-granite-3.3-2B-Instruct": ("granite", dict.fromkeys(CALLED, CALLS)),
    "openai-gpt-oss-120b": ("gpt-oss", {"tools_string_args": JSON}),
    "trl-gptoss_training": ("gpt-oss", {"tools_string_args": JSON}),
    "trl-llama3_training": ("llama3", dict.fromkeys(TOOLS, WORDS)),
    "meta-llama-Llama-3.1-8B-Instruct": ("llama3.1", {"tools_string_args": JSON}),
    "meta-llama-Llama-3.2-3B-Instruct": ("llama3.1", {"tools_string_args": JSON}),
    "mistral-common-v3_spm": (
        "mistral-v3",
        {**dict.fromkeys(CALLED_AS_MAPPING, ESCAPED), "two_users": ORDER, "empty_assistant_last": REFUSES},
    ),
    "mistralai-Mistral-Nemo-Instruct-2407": ("mistral-tekken", {"multi_turn_en": MOVED, "tools_string_args": JSON}),
    "mistral-common-v7": (
        "mistral-v7",
        {**dict.fromkeys(CALLED_AS_MAPPING, ESCAPED), "two_users": ORDER, "empty_assistant_last": REFUSES},
    ),
    "mistral-common-v13": ("mistral-v13", {"two_users": ORDER, "empty_assistant_last": REFUSES}),
    "microsoft-Phi-3.5-mini-instruct": ("phi3", dict.fromkeys(TOOLS, WORDS)),
    "trl-phi3_training": ("phi3", dict.fromkeys(TOOLS, WORDS)),
}


def test_smollm2_writes_what_came_with_the_model(shared: Path) -> None:
    own = (shared / "data/tokenizers/smollm2/chat_template.jinja").read_text(encoding="utf-8")
    for talk in conversations(shared).values():
        if "tools" not in talk:
            for prompt in (False, True):
                ours = render(families()["smollm2"].source, talk["messages"], add_generation_prompt=prompt)
                assert ours == render(own, talk["messages"], add_generation_prompt=prompt)


def conversations(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "data/chat_templates/conversations.json").read_text(encoding="utf-8"))


def written(source: str, talk: dict[str, Any], now: datetime, variables: dict[str, Any]) -> str | None:
    """The text, None where the template refuses."""
    try:
        return render(source, talk["messages"], talk.get("tools"), now, **variables)
    except TemplateRefused:
        return None


def compared(shared: Path, name: str, family: str) -> Iterator[tuple[str, bool]]:
    """Conversations of a golden file, and whether the family writes the same text, or refuses as well."""
    folder, talks = shared / "data/chat_templates", conversations(shared)
    golden = json.loads((folder / "expected" / f"{name}.json").read_text(encoding="utf-8"))
    now = datetime.fromisoformat(golden["context"]["strftime_now"])
    for case in golden["cases"]:
        variables = {**golden["context"], **case["kwargs"]}
        variables.pop("strftime_now")
        expected, talk = case.get("expected"), talks[case["conversation"]]
        if name.startswith("cz-"):
            source = (folder / "templates" / f"{name}.jinja").read_text(encoding="utf-8").replace("    ", "").replace("\n", "")
            expected = written(source, talk, now, variables)
        yield case["conversation"], written(families()[family].source, talk, now, variables) == expected


@pytest.mark.parametrize("name", GOLDEN)
def test_families_write_what_came_with_the_models(shared: Path, name: str) -> None:
    family, reasons = GOLDEN[name]
    found = list(compared(shared, name, family))
    assert {conversation for conversation, same in found if not same} == set(reasons)


def test_the_minja_contexts_render(shared: Path) -> None:
    for path in sorted((shared / "data/chat_templates/minja_contexts").glob("*.json")):
        context = json.loads(path.read_text(encoding="utf-8"))
        messages, tools = context.pop("messages"), context.pop("tools", None)
        for name in ("qwen2.5", "qwen3", "llama3.1", "mistral-v3", "deepseek-v3", "glm4", "gpt-oss", "default"):
            text = render(families()[name].source, messages, tools, datetime(2024, 7, 26), **context)
            for message in messages:
                said = (message["content"] or "").strip().split("\n")[0]
                assert said in text or json.dumps(said)[1:-1] in text
