"""The page on chat, compare and generate: its commands are those of the program, and run as they stand."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from luthier.cli.app import run
from luthier.cli.talk import HELP, SETTINGS, Talk
from luthier.generation.batch import PORTION
from luthier.generation.sampling import Decoding
from tests.repo.pages import commands

ROOT = Path(__file__).resolve().parents[2]
BOTH = [ROOT / "docs/chat.md", ROOT / "docs/chat.zh.md"]


@pytest.mark.parametrize("page", BOTH, ids=lambda page: page.name)
def test_the_page_and_the_help_name_every_command_of_a_chat(page: Path) -> None:
    known = {*Talk(cast(Any, SimpleNamespace()), None, {})._commands, "/exit"}
    text = page.read_text("utf-8")
    assert set(re.findall(r"^\| `(/\w+)", text, re.MULTILINE)) == known
    assert set(re.findall(r"^(/\w+)", HELP, re.MULTILINE)) == known - {"/help"}
    assert re.search(rf"\b{PORTION}\b", text)
    assert set(SETTINGS) <= set(Decoding.__dataclass_fields__)


@pytest.mark.slow
def test_commands_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    talks = [[{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": str(n + 1)}] for n in range(4)]
    Path("shop.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    Path("questions.txt").write_text("Is it so?\n你好吗？\n")
    Path("schema.json").write_text(
        '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}, "required": ["name"]}'
    )
    values = {"model": "tiny", "data": {"train": "shop.jsonl"}, "method": "lora", "report_to": []}
    Path("r.yaml").write_text(yaml.safe_dump(values | {"train": {"max_steps": 21, "batch_size": 2}, "checkpoint": {"every": 20}}))
    for name in ("first", "second"):
        assert run(["train", "r.yaml", "--name", name]) == 0
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    asked = iter([])
    monkeypatch.setattr("builtins.input", lambda prompt: next(asked, None) or (_ for _ in ()).throw(EOFError))
    for line in commands(BOTH[0]):
        assert run(shlex.split(line)[1:]) == 0, line
    assert "<html" in Path("answers.html").read_text("utf-8")
    assert [len(Path(name).read_text("utf-8").splitlines()) for name in ("answers.jsonl", "varied.jsonl", "people.jsonl")] == [
        4,
        16,
        2,
    ]
    for line in Path("people.jsonl").read_text("utf-8").splitlines():
        assert "name" in json.loads(json.loads(line)["messages"][-1]["content"])
