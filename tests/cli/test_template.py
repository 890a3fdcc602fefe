"""`luthier template`: list, show, render and check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.chat import families
from luthier.cli.app import run
from tests.chat_folders import write_tokenizer

MESSAGES = [{"role": "user", "content": "hi"}]
CALL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture
def said(tmp_path: Path) -> Path:
    path = tmp_path / "messages.json"
    path.write_text(json.dumps(MESSAGES))
    return path


def test_list_names_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["template", "list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["name", *families()]


def test_show_prints_a_template_that_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["template", "show", "qwen"]) == 0
    shown = capsys.readouterr().out
    assert "default system message: You are Qwen" in shown
    assert shown.endswith(families()["qwen2.5"].source)
    assert run(["template", "show", "qwenn"]) == 2
    assert "Did you mean" in capsys.readouterr().err


def test_render_by_family_file_and_model(capsys: pytest.CaptureFixture[str], tmp_path: Path, said: Path) -> None:
    asked = ["template", "render", "--messages", str(said), "--template"]
    assert run([*asked, "llama2"]) == 0
    assert capsys.readouterr().out == "<s>[INST] hi [/INST]\n"
    assert run([*asked, "qwen3", "--set", "enable_thinking=false"]) == 0
    assert capsys.readouterr().out.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert run([*asked, "chatml", "--no-generation-prompt"]) == 0
    assert capsys.readouterr().out == "<|im_start|>user\nhi<|im_end|>\n"
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[0].content }}?")
    assert run([*asked, str(own)]) == 0
    assert capsys.readouterr().out == "hi?\n"
    assert run([*asked, "<{{ messages[0].content }}>"]) == 0
    assert capsys.readouterr().out == "<hi>\n"
    model = write_tokenizer(tmp_path / "model")
    assert run([*asked[:-1], "--model", str(model)]) == 0
    assert capsys.readouterr().out == "<s><user>hi</s><assistant>\n"


def test_render_takes_tools(capsys: pytest.CaptureFixture[str], tmp_path: Path, said: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"type": "function", "function": CALL}]))
    assert run(["template", "render", "--template", "qwen3", "--messages", str(said), "--tools", str(tools)]) == 0
    assert '"name": "f"' in capsys.readouterr().out
    said.write_text(json.dumps({"messages": MESSAGES, "tools": [CALL]}))
    assert run(["template", "render", "--template", "default", "--messages", str(said)]) == 0
    assert "> Tool Name: f" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "list of messages"),
        ('[{"content": "hi"}]', "each with a `role`"),
        ('{"a": 1}', "list of messages"),
    ],
)
def test_broken_messages_are_told(capsys: pytest.CaptureFixture[str], said: Path, content: str, message: str) -> None:
    said.write_text(content)
    assert run(["template", "render", "--template", "chatml", "--messages", str(said)]) == 2
    assert message in capsys.readouterr().err


def test_a_refusal_is_told(capsys: pytest.CaptureFixture[str], said: Path) -> None:
    said.write_text(json.dumps(MESSAGES * 2))
    assert run(["template", "render", "--template", "llama2", "--messages", str(said)]) == 2
    assert "must alternate" in capsys.readouterr().err
    assert run(["template", "render", "--messages", str(said)]) == 2
    assert "neither a template nor a model" in capsys.readouterr().err


def test_check_names_the_first_token_that_differs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = write_tokenizer(tmp_path / "model")
    assert run(["template", "check", "--model", str(model)]) == 0
    assert "a question: the same" in capsys.readouterr().out
    assert run(["template", "check", "--model", str(model), "--template", "default"]) == 1
    told = capsys.readouterr().out
    assert "a question: differs at token 1 (after '<s>'): trained 'Huma', served '<use'" in told
    bare = write_tokenizer(tmp_path / "bare", template=None)
    assert run(["template", "check", "--model", str(bare), "--template", "default"]) == 2
