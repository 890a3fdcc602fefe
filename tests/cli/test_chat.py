"""`luthier chat` in a terminal that is not one; `test_terminal.py` has one that is."""

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
from luthier.cli.chat import chat
from luthier.data.problems import Problems
from luthier.data.read_examples import read_examples
from luthier.generation.decode import Answer, Piece
from luthier.recipe.schema import Source


class Echo:
    """Answers with what it was asked, piece by piece."""

    def __init__(self, voice: str) -> None:
        self.name = self.voice = voice
        self.names: tuple[str, ...] = ()
        self.adapter: str | None = None
        self.thinks = False
        self.asked: list[tuple[Any, str | None]] = []
        self.settings: list[dict[str, Any]] = []

    def stream(self, messages: Any, *, system: str | None = None, **settings: Any) -> Iterator[Any]:
        self.asked.append((json.loads(json.dumps(messages)), system))
        self.settings.append(settings)
        if isinstance(messages, str):
            return iter([self.voice, f" {messages}"])
        question = messages[-1]["content"]
        if question == "too long":
            raise UserError("the prompt has 9 tokens, the model's context is 8")
        return self._say(question)

    def _say(self, question: str) -> Iterator[Piece]:
        yield Piece(None, self.voice)  # type: ignore[arg-type]
        if question == "interrupt me":
            raise KeyboardInterrupt
        answer = Answer(f"{self.voice} {question}", (), "length" if question == "for ever" else "stop")
        yield Piece(None, f" {question}", answer=answer)  # type: ignore[arg-type]

    def may_think(self) -> bool:
        return self.thinks

    def bare(self) -> None:
        self.adapter, self.name = None, self.voice


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[bool, Echo]:
    """Base and tuned model behind `luthier.workshop`, and the arguments of each call."""
    both = {True: Echo("base"), False: Echo("tuned")}
    workshop = SimpleNamespace(calls=[])

    def load(name: str, *, checkpoint: int | None = None, base: bool = False, adapter: Path | None = None) -> Echo:
        workshop.calls.append((name, checkpoint, base, adapter))
        return both[base]

    def change_adapter(speaker: Echo, name: str, *, checkpoint: int | None = None) -> str | None:
        if name == "nowhere":
            raise UserError("there is no run `nowhere`")
        speaker.adapter = speaker.name = f"{name} at {checkpoint}"
        speaker.names = (*speaker.names, speaker.name)
        return "warning: trained on another" if name == "foreign" else None

    workshop.load_chat = workshop.load_speaker = load
    workshop.change_adapter = change_adapter
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


def test_the_last_question_is_answered_anew_with_the_next_seed(models: dict[bool, Echo]) -> None:
    result = run(chat, "first", "--temperature", "0.5", "--seed", "7", typed="/regenerate\none\n/regenerate\ntwo\n")
    asked, settings = models[False].asked, models[False].settings
    assert "There is no question yet." in result.stdout
    assert asked[0] == asked[1]
    assert [each["seed"] for each in settings] == [7, 8, 8]
    assert [message["content"] for message in asked[2][0]] == ["one", "tuned one", "two"]


def test_at_temperature_0_one_is_told_that_the_answer_stays(models: dict[bool, Echo]) -> None:
    assert "try /set temperature 0.7" in run(chat, "first", typed="one\n/regenerate\n").stdout


def test_settings_are_checked_before_they_count(models: dict[bool, Echo]) -> None:
    typed = "/set temperature 0.7\n/set top-k=5\n/set temprature 1\n/set top_p 2\n/set seed x\n/set top_k\nhello\n"
    result = run(chat, "first", "--presence-penalty", "0.5", "--stop", "END", typed=typed)
    settings = models[False].settings[0]
    assert (settings["temperature"], settings["top_k"], settings["top_p"], settings["seed"]) == (0.7, 5, 1.0, 0)
    assert (settings["presence_penalty"], settings["stop_strings"]) == (0.5, ("END",))
    assert "Did you mean `temperature`?" in result.stderr
    assert "top_p: 2.0 is out of range" in result.stderr
    assert "`x` is not a whole number" in result.stderr
    assert result.stdout == "temperature 0.7\ntop_k 5\ntop_k 5\ntuned hello\n"


def test_the_last_turn_is_taken_back(models: dict[bool, Echo]) -> None:
    result = run(chat, "first", typed="one\ntwo\n/undo\nthree\n/undo\n/undo\n")
    assert [message["content"] for message in models[False].asked[2][0]] == ["one", "tuned one", "three"]
    assert "2 messages are left." in result.stdout
    assert "The conversation is empty." in result.stdout


def test_what_is_saved_is_data_to_learn_from(models: dict[bool, Echo], tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    typed = f"/save {file}\n一\n/save {file}\n/clear\n/system none\nfor ever\ninterrupt me\ntwo\n/save {file}\n/save\n"
    result = run(chat, "first", "--system", "Be brief", typed=typed)
    assert "there is no answer yet" in result.stderr
    assert "names no file" in result.stderr
    assert f"{file}:2: 6 messages" in result.stdout
    problems = Problems()
    first, second = read_examples(Source(path=str(file)), problems, stage="sft")
    problems.finish()
    assert first.messages == (
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "一"},
        {"role": "assistant", "content": "tuned 一"},
    )
    assert [message.get("weight") for message in second.messages if message["role"] == "assistant"] == [0, 0, None]
    assert all("weight" not in message for messages, _ in models[False].asked for message in messages)


def test_a_file_of_something_else_is_not_added_to(models: dict[bool, Echo], tmp_path: Path) -> None:
    file = tmp_path / "alpaca.json"
    file.write_text('[\n{"instruction": "a", "output": "b"}]')
    result = run(chat, "first", typed=f"one\n/save {file}\n/save {tmp_path}\n")
    assert "holds something else than conversations" in result.stderr
    assert f"error: {tmp_path}: Is a directory" in result.stderr
    assert file.read_text() == '[\n{"instruction": "a", "output": "b"}]'


def test_a_conversation_is_loaded_and_gone_on_with(models: dict[bool, Echo], tmp_path: Path) -> None:
    file = tmp_path / "my talks.jsonl"
    file.write_text(
        '{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        '{"messages": [{"role": "user", "content": "waiting"}]}\n'
    )
    result = run(chat, "first", typed=f"/load {file} 1\nc\n/load {file}\n/regenerate\n/load {file} 3\n/load {file}x\n")
    asked = models[False].asked
    assert [message["content"] for message in asked[0][0]] == ["a", "b", "c"]
    assert [system for _, system in asked] == ["S", "S"]
    assert asked[1][0] == [{"role": "user", "content": "waiting"}]
    assert f"{file}:1: 2 messages" in result.stdout
    assert "it has 2 conversations" in result.stderr
    assert "my talks.jsonlx" in result.stderr


def test_adapters_are_changed_by_name_step_and_none(models: dict[bool, Echo]) -> None:
    result = run(chat, "first", typed="/adapter second\n/adapter foreign@40\n/adapter nowhere\n/adapter\n/adapter none\n")
    assert result.stdout.splitlines() == [
        "Talking to second at None.",
        "Talking to foreign at 40. Also there: second at None.",
        "Talking to foreign at 40. Also there: second at None.",
        "Talking to tuned. Also there: second at None, foreign at 40.",
    ]
    assert "warning: trained on another" in result.stderr
    assert "error: there is no run `nowhere`" in result.stderr


def test_thinking_is_switched_where_the_template_leaves_the_choice(models: dict[bool, Echo]) -> None:
    assert "knows no such choice" in run(chat, "first", typed="/think on\n").stderr
    models[False].thinks = True
    result = run(chat, "first", "--no-think", typed="one\n/think on\ntwo\n/think auto\nthree\n/think maybe\n")
    assert [settings["thinking"] for settings in models[False].settings] == [False, True, None]
    assert "takes `on`, `off` or `auto`" in result.stderr


def test_lines_that_go_on_and_blocks_are_one_question(models: dict[bool, Echo]) -> None:
    run(chat, "first", typed='one \\\nmore\n"""two\n\n/exit\nlines"""\n"""/etc is what?"""\n"""\nunfinished\n')
    questions = [messages[-1]["content"] for messages, _ in models[False].asked]
    assert questions == ["one \nmore", "two\n\n/exit\nlines", "/etc is what?", "unfinished"]


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
