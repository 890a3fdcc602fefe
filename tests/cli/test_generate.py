"""`luthier generate`: any data in, one line for each answer out, and a kill leaves no trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.app import run
from luthier.data.problems import Problems
from luthier.data.read_examples import read_examples
from luthier.recipe.schema import Source
from tests.chat_folders import adapter_folder, model_folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    adapter_folder("qwen3", folder / "adapter", model_folder("qwen3", folder / "base"))
    return folder


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with questions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("luthier.generation.batch.PORTION", 4)
    rows = [{"instruction": f"Count to {n}.", "input": "", "output": f"{n}!"} for n in range(10)]
    Path("rows.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.fixture
def generate(models: Path, place: Path) -> Any:
    def call(*arguments: str, questions: str = "rows.json", out: str = "out.jsonl", model: str = "base") -> int:
        return run(["generate", questions, out, "--model", str(models / model), "--max-new-tokens", "6", *arguments])

    return call


def lines(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def test_each_row_has_its_answers_as_data_to_learn_from(generate: Any, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.workshop import load_chat

    assert generate("--n", "2", "--temperature", "1", "--system", "S") == 0
    assert capsys.readouterr().out == "out.jsonl: 20 answers\n"
    found = lines()
    assert [(line["row"], line["choice"]) for line in found] == [(row, choice) for row in range(10) for choice in range(2)]
    first, second = found[14:16]
    assert first["messages"][:2] == [{"role": "system", "content": "S"}, {"role": "user", "content": "Count to 7."}]
    assert (first["reference"], first["origin"], first["finish_reason"]) == ("7!", "rows.json:1", "length")
    assert first["messages"] != second["messages"], "two answers to one question have randomness of their own"
    problems = Problems()
    examples = list(read_examples(Source(path="out.jsonl"), problems))
    problems.finish()
    assert [message.get("weight") for message in examples[14].messages] == [None, None, 0], "a cut answer is not learnt"
    model = load_chat(models / "base")
    assert generate(out="greedy.jsonl") == 0
    said = [line["messages"][-1]["content"] for line in lines("greedy.jsonl")]
    assert said == [model.chat(f"Count to {n}.", max_new_tokens=6) for n in range(10)]


@pytest.mark.parametrize(
    ("name", "text", "asked"),
    [
        ("talk.jsonl", '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n', ["a"]),
        ("open.jsonl", '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}\n', ["s", "a"]),
        (
            "share.json",
            '[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]}]',
            ["a", "b", "c"],
        ),
        ("prompts.csv", "question\na?\n", ["a?"]),
        ("pairs.jsonl", '{"prompt": "p", "chosen": "good", "rejected": "bad"}\n', ["p"]),
        ("plain.txt", "\n一\n", ["一"]),
        ("texts.jsonl", '{"text": "t"}\n', ["t"]),
    ],
)
def test_any_format_is_asked(name: str, text: str, asked: list[str], tmp_path: Path) -> None:
    from luthier.data.questions import questions_of

    (tmp_path / name).write_text(text, "utf-8")
    problems = Problems()
    (question,) = questions_of(Source(path=str(tmp_path / name)), problems)
    problems.finish()
    assert [message["content"] for message in question.messages] == asked


def test_lines_of_a_text_are_questions_of_their_own(tmp_path: Path) -> None:
    from luthier.data.questions import questions_of

    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    found = list(questions_of(Source(path=str(tmp_path / "a.txt")), Problems()))
    assert [(talk.messages[0]["content"], talk.origin.line) for talk in found] == [("one", 1), ("two", 2), ("three", 4)]


def test_what_is_there_is_not_written_again_and_a_torn_line_is_cut(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--temperature", "1", "--n", "2") == 0
    file = Path("out.jsonl")
    whole = file.read_bytes()
    for cut in (0, 7, len(whole) // 2, len(whole) - 1, len(whole)):
        file.write_bytes(whole[:cut])
        capsys.readouterr()
        assert generate("--temperature", "1", "--n", "2") == 0
        there = whole[:cut].count(b"\n")
        assert capsys.readouterr().out == f"out.jsonl: 20 answers{f', {there} of them were there' if there else ''}\n"
        assert file.read_bytes() == whole


def test_another_model_other_settings_and_other_questions_are_refused(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate() == 0
    before = Path("out.jsonl").read_bytes()
    rows = json.loads(Path("rows.json").read_text())
    for said, change in (
        ("out.jsonl:1: was answered with other settings.", lambda: generate("--seed", "1")),
        ("out.jsonl:1: was answered with another model.", lambda: generate(model="adapter")),
        ("out.jsonl:1: was answered with another model and other settings.", lambda: generate("--n", "2", model="adapter")),
        ("out.jsonl:1: was answered with another question.", lambda: generate("--system", "S")),
        ("out.jsonl:10: it has more answers than the 9", lambda: generate("--limit", "9")),
    ):
        assert change() == 2
        told = capsys.readouterr().err
        assert told.startswith(f"error: {said}")
        assert "--restart" in told
        assert Path("out.jsonl").read_bytes() == before
    Path("rows.json").write_text(json.dumps([*rows[:5], {**rows[5], "instruction": "?"}, *rows[6:]]))
    assert generate() == 2
    assert "out.jsonl:6: was answered with another question." in capsys.readouterr().err
    assert generate("--seed", "1", "--restart") == 0
    assert len(lines()) == 10
    assert lines()[5]["messages"][0]["content"] == "?"
    Path("rows.json").write_text(json.dumps([*rows[:5], {**rows[5], "instruction": "?"}, *rows[6:], rows[0]]))
    capsys.readouterr()
    assert generate("--seed", "1") == 0
    assert capsys.readouterr().out == "out.jsonl: 11 answers, 10 of them were there\n"


def test_a_file_of_something_else_stays_what_it_is(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ('{"messages": []}\n', "notes\n", "notes", '[\n{"instruction": 1}]'):
        Path("out.jsonl").write_text(text)
        for more in ((), ("--restart",)):
            assert generate(*more) == 2
            assert "out.jsonl:1: holds something else than answers" in capsys.readouterr().err
        assert Path("out.jsonl").read_text() == text
    assert generate(out="rows.json") == 2
    assert generate(out=".") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_bad_row_is_named_and_nothing_is_written_or_it_is_left_out(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ['{"prompt": "a"}', '{"prompt": 3}', '{"prompt": "b"}', json.dumps({"prompt": "long " * 600}), "{torn"]
    Path("bad.jsonl").write_text("\n".join(rows[:2]) + "\n")
    assert generate(questions="bad.jsonl") == 2
    assert capsys.readouterr().err.startswith("error: bad.jsonl:2: ")
    Path("bad.jsonl").write_text("\n".join([rows[0], rows[3]]) + "\n")
    assert generate(questions="bad.jsonl") == 2
    told = capsys.readouterr().err
    assert "bad.jsonl:2: the prompt has" in told
    assert "leave them out with `--skip-bad`" in told
    Path("bad.jsonl").write_text("\n".join(rows) + "\n")
    assert generate(questions="bad.jsonl") == 2
    assert not Path("out.jsonl").exists()
    assert generate("--skip-bad", questions="bad.jsonl") == 0
    assert "bad rows left out: 3" in capsys.readouterr().out
    assert [line["messages"][0]["content"] for line in lines()] == ["a", "b"]


def test_answers_have_the_form_that_is_asked_for(generate: Any, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--choice", "yes", "--choice", "no", "--limit", "3") == 0
    assert {line["messages"][-1]["content"] for line in lines()} <= {"yes", "no"}
    assert generate("--regex", "[0-9]{3}", "--limit", "3", out="digits.jsonl") == 0
    assert all(line["messages"][-1]["content"].isdigit() for line in lines("digits.jsonl"))
    (place / "schema.json").write_text('{"type": "boolean"}')
    assert generate("--json-schema", "schema.json", "--limit", "2", out="json.jsonl") == 0
    assert all(isinstance(json.loads(line["messages"][-1]["content"]), bool) for line in lines("json.jsonl"))
    for said, arguments in (
        ("contradict each other", ("--regex", "a", "--choice", "b")),
        ("not valid JSON", ("--json-schema", "{")),
        ("cannot be read", ("--json-schema", "nowhere.json")),
        ("regex: the form of the answer cannot be read", ("--regex", "(")),
    ):
        assert generate(*arguments, out="other.jsonl") == 2
        assert said in capsys.readouterr().err
    assert not Path("other.jsonl").exists()


def test_a_second_writer_is_refused(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.files import lock

    assert generate("--limit", "2") == 0
    with lock(Path("out.jsonl"), wait=False):
        assert generate() == 2
    assert "another process is writing it" in capsys.readouterr().err


def test_without_a_terminal_progress_is_told_in_lines(
    generate: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.cli.generate.INTERVAL", 0.0)
    assert generate() == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("1 of 10 answers, ")
    assert told[-1] == "10 of 10 answers, 0s left"


@pytest.mark.slow
def test_a_kill_leaves_no_trace(tmp_path: Path) -> None:
    questions = tmp_path / "rows.txt"
    questions.write_text("".join(f"What is {n} + {n * 7 % 90}?\n" for n in range(300)))

    def start(out: Path) -> subprocess.Popen[bytes]:
        arguments = ["generate", str(questions), str(out), "--model", "tiny", "--temperature", "1", "--max-new-tokens", "40"]
        return subprocess.Popen(
            [sys.executable, "-m", "luthier", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the tests may run behind a shell that ignores it
        )

    assert start(tmp_path / "whole.jsonl").wait(600) == 0
    out = tmp_path / "killed.jsonl"
    seen = 0
    for _ in range(3):
        process = start(out)
        while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") <= seen + 20):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen = out.read_bytes().count(b"\n")
    assert seen < 300
    interrupted = start(out)
    while interrupted.poll() is None and out.read_bytes().count(b"\n") <= seen:
        time.sleep(0.05)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(60) == 3
    assert start(out).wait(600) == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
