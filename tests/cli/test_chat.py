"""`luthier chat` and `luthier compare` in a terminal that is not one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from luthier import UserError
from luthier.cli.chat import chat, compare


class Echo:
    """Answers with what it was asked, piece by piece."""

    name = "echo"

    def __init__(self, voice: str) -> None:
        self.voice = voice
        self.asked: list[tuple[Any, str | None]] = []

    def stream(self, messages: Any, *, system: str | None = None, **decoding: Any) -> Iterator[str]:
        self.asked.append((json.loads(json.dumps(messages)), system))
        question = messages if isinstance(messages, str) else messages[-1]["content"]
        if question == "too long":
            raise UserError("the prompt has 9 tokens, the model's context is 8")
        return self._say(question)

    def _say(self, question: str) -> Iterator[str]:
        yield self.voice
        if question == "interrupt me":
            raise KeyboardInterrupt
        yield f" {question}"

    def answers(self, questions: list[str], **decoding: Any) -> list[SimpleNamespace]:
        return [SimpleNamespace(text=f"{self.voice} {question}\n") for question in questions]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[bool, Echo]:
    """Base and tuned model behind `luthier.workshop.load_chat`, and the arguments of each call."""
    both = {True: Echo("base"), False: Echo("tuned")}
    workshop = SimpleNamespace(calls=[])

    def load_chat(name: str, *, checkpoint: int | None = None, base: bool = False, adapter: Path | None = None) -> Echo:
        workshop.calls.append((name, checkpoint, base, adapter))
        return both[base]

    workshop.load_chat = load_chat
    monkeypatch.setitem(sys.modules, "luthier.workshop", workshop)
    return both


def run(command: Any, *arguments: str, typed: str = "") -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments), input=typed, catch_exceptions=False)


def test_a_prompt_is_answered_once_and_nothing_else_is_printed(models: dict[bool, Echo]) -> None:
    result = run(chat, "first", "--prompt", "你是谁？", "--system", "S", "--base", "--checkpoint", "5")
    assert (result.exit_code, result.stdout) == (0, "base 你是谁？\n")
    assert models[True].asked == [("你是谁？", "S")]
    assert sys.modules["luthier.workshop"].calls == [("first", 5, True, None)]


def test_a_conversation_grows_and_commands_act_on_it(models: dict[bool, Echo]) -> None:
    result = run(chat, "first", typed="one\n\ninterrupt me\n/system Be brief\ntwo\n/clear\n/what\nthree\n/exit\nfour\n")
    asked = models[False].asked
    told = ["one", "tuned one", "interrupt me", "tuned", "two"]
    assert [message["content"] for message in asked[2][0]] == told
    assert [message["role"] for message in asked[2][0]] == ["user", "assistant", "user", "assistant", "user"]
    assert [system for _, system in asked] == [None, None, "Be brief", "Be brief"]
    assert asked[3][0] == [{"role": "user", "content": "three"}]
    assert result.exit_code == 0
    assert "tuned …\n" in result.stdout
    assert "no command /what" in result.stdout
    assert "four" not in result.stdout


def test_an_answer_cannot_command_the_terminal(models: dict[bool, Echo]) -> None:
    result = run(chat, "first", typed="\x1b[2Jred\n")
    assert result.stdout == "tuned \ufffd[2Jred\n"
    assert run(chat, "first", "--prompt", "\x1b[2Jred").stdout == "tuned \x1b[2Jred\n", (
        "a program that reads the answer gets all of it"
    )


def test_a_turn_that_does_not_fit_is_told_and_left_out(models: dict[bool, Echo]) -> None:
    result = run(chat, "first", typed="too long\nshort\n")
    assert "error: the prompt has 9 tokens" in result.stderr
    assert models[False].asked[-1][0] == [{"role": "user", "content": "short"}]
    assert (result.exit_code, result.stdout) == (0, "tuned short\n")


def test_compare_prints_plainly_or_as_json(models: dict[bool, Echo]) -> None:
    plain = run(compare, "first", "--prompt", "a", "--prompt", "b", "--checkpoint", "5")
    assert sys.modules["luthier.workshop"].calls == [("first", None, True, None), ("first", 5, False, None)]
    assert plain.stdout == "prompt: a\nbase:   base a\ntuned:  tuned a\n\nprompt: b\nbase:   base b\ntuned:  tuned b\n"
    as_json = run(compare, "first", "--prompt", "黄", "--json")
    assert json.loads(as_json.stdout) == [{"prompt": "黄", "base": "base 黄", "tuned": "tuned 黄"}]


def test_a_model_alone_cannot_be_compared(models: dict[bool, Echo], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="nothing to be compared with"):
        run(compare, str(tmp_path), "--prompt", "a")
    assert run(compare, str(tmp_path), "--adapter", "x", "--prompt", "a").exit_code == 0
    assert sys.modules["luthier.workshop"].calls == [(str(tmp_path), None, False, None), (str(tmp_path), None, False, Path("x"))]


def test_adapter_merged_model_and_plain_peft_answer_alike(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from luthier.cli.export import merge
    from tests.chat_folders import adapter_folder, model_folder

    base = model_folder("qwen3", tmp_path / "base")
    adapter = adapter_folder("qwen3", tmp_path / "adapter", base)
    assert run(merge, str(base), "--adapter", str(adapter), "--out", str(tmp_path / "out")).exit_code == 0
    asked = ("--prompt", "Hello 你好", "--max-new-tokens", "16")
    tuned = run(chat, str(base), "--adapter", str(adapter), *asked).stdout
    assert tuned == run(chat, str(adapter), *asked).stdout == run(chat, str(tmp_path / "out"), *asked).stdout
    assert tuned != run(chat, str(base), *asked).stdout
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    question = [{"role": "user", "content": "Hello 你好"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tuned == tokenizer.decode(written, skip_special_tokens=True) + "\n"
