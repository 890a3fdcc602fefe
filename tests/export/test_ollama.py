"""Templates of Go that write what the Jinja templates write, and a Modelfile around them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from luthier import UserError
from luthier.chat import ChatTemplate, families, resolve
from luthier.export.ollama import export_ollama, pieces_of
from tests.chat_folders import model_folder
from tests.export.gguf.models import with_merges

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "user", "content": "你好，1 < 2？"},
    {"role": "assistant", "content": "Yes.\nIt is."},
    {"role": "user", "content": "and then"},
]
FOLLOWED = (
    "chatml",
    "llama3",
    "llama2",
    "gemma",
    "qwen2.5",
    "phi3",
    "zephyr",
    "vicuna",
    "mistral-v1",
    "deepseek",
    "yi",
    "internlm2",
)


def go(template: str, messages: list[dict[str, str]]) -> str:
    """As much of Go's templates as is used: range over messages, if, else if, else, end, fields."""
    parts = re.split(r"\{\{ (.*?) \}\}", template)
    system = next((message["content"] for message in messages if message["role"] == "system"), "")

    def block(at: int, scope: dict[str, Any], live: bool) -> tuple[str, int, str]:
        """The text up to the `else` or `end` that closes this block, where that is, and what it says."""
        text = ""
        while at < len(parts):
            if at % 2 == 0:
                text += parts[at] if live else ""
            elif parts[at] == "end" or parts[at].startswith("else"):
                return text, at, parts[at]
            elif parts[at].startswith("range"):
                start, end = at, at
                for number, message in enumerate(messages):
                    written, end, _ = block(start + 1, {"i": number, **message}, live)
                    text += written
                at = end
            elif parts[at].startswith("if "):
                written, at = branches(at, scope, live)
                text += written
            elif live:
                text += {".Content": scope.get("content", ""), "$.System": system}[parts[at]]
            at += 1
        return text, at, ""

    def branches(at: int, scope: dict[str, Any], live: bool) -> tuple[str, int]:
        text, said, taken = "", parts[at], False
        while said != "end":
            holds = not taken and (said == "else" or true(said.removeprefix("else ").removeprefix("if "), scope))
            written, at, said = block(at + 1, scope, live and holds)
            text, taken = text + written, taken or holds
        return text, at

    def true(condition: str, scope: dict[str, Any]) -> bool:
        if condition == "$.System":
            return bool(system)
        if condition == "or (eq $i 0) (and (eq $i 1) $.System)":
            return scope["i"] == 0 or (scope["i"] == 1 and bool(system))
        field = re.fullmatch(r'eq \.Role "(\w+)"', condition)
        assert field, condition
        return scope["role"] == field[1]

    return block(0, {}, True)[0]


@pytest.mark.parametrize("name", FOLLOWED)
def test_go_writes_what_jinja_writes(name: str) -> None:
    template = resolve(name, None, VARIABLES)
    pieces = pieces_of(template)
    trials = [TALK[:1], TALK]
    if pieces.before_system is not None:
        trials += [[{"role": "system", "content": "Be brief."}, *trial] for trial in trials]
    for trial in trials:
        assert go(pieces.go(), trial) == template.render(trial, add_generation_prompt=True)


def test_most_of_the_families_can_be_followed() -> None:
    refused = []
    for name in families():
        try:
            pieces_of(resolve(name, None, VARIABLES))
        except UserError:
            refused.append(name)
    assert len(refused) <= len(families()) // 4, refused


def test_a_template_that_does_more_is_refused() -> None:
    numbered = "{% for m in messages %}[{{ loop.index }}]{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="does more than put texts around words"):
        pieces_of(ChatTemplate("numbered", numbered, VARIABLES))


def test_a_folder_for_ollama(tmp_path: Path) -> None:
    folder = with_merges(model_folder("llama", tmp_path / "model"))
    found = export_ollama(folder, tmp_path / "out")
    assert found is not None
    assert found.ok
    text = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """')
    assert 'PARAMETER stop "</s>"' in text
    assert "PARAMETER num_ctx 512" in text
    assert (tmp_path / "out" / "model.gguf").stat().st_size > 50_000
    with pytest.raises(UserError, match="no chat template"):
        export_ollama(model_folder("llama", tmp_path / "plain", template=None), tmp_path / "none")
    assert not (tmp_path / "none").exists()
