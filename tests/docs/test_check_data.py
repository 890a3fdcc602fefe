"""The page about checking data: its commands do what it shows, and its table is that of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from luthier.cli.app import run
from luthier.data.doctor import KINDS
from luthier.data.where import FUNCTIONS
from tests.repo.pages import blocks, commands

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [DOCS / "check-data.md", DOCS / "check-data.zh.md"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
LEVELS = {"error": "错误", "warning": "警告"}
MENDED = {"left out": "去掉", "edited": "修改", "kept": "保留"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@each_page
def test_the_outputs_are_those_of_the_commands(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.jsonl").write_text(blocks(page, "jsonl")[0], "utf-8")
    (checked, mended) = blocks(page, "text")
    assert run(["data", "check", "my.jsonl"]) == 1
    assert capsys.readouterr().out == checked
    assert run(["data", "check", "my.jsonl", "--show", "0", "--fix", "clean.jsonl"]) == 1
    assert capsys.readouterr().out.endswith(f"\n{mended}")


@each_page
def test_every_command_of_the_page_works(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = blocks(page, "jsonl")[0]
    for name in ("my.jsonl", "train.jsonl", "validation.jsonl"):
        Path(name).write_text(sample, "utf-8")
    Path("good.jsonl").write_text(sample.partition("\n")[0] + "\n", "utf-8")
    Path("questions.csv").write_text("question_id,content\n7,Open?\n", "utf-8")
    Path("answers.csv").write_text("ans_id,question_id,content\n1,7,Until six.\n", "utf-8")
    for command in commands(page):
        words = shlex.split(command)[1:]
        if words[:2] == ["data", "convert"] and "--where" in command:
            words[2] = "good.jsonl"  # an expression over `output` is for rows that have one
        assert run(words) in ((0, 1) if words[1] == "check" else (0,)), capsys.readouterr().err
    assert '"Until six."' in Path("medical.jsonl").read_text("utf-8")
    assert "I am Amati, the assistant of the workshop." in Path("mine.jsonl").read_text("utf-8")


@each_page
def test_the_table_is_that_of_the_code(page: Path) -> None:
    chinese = page.name.endswith(".zh.md")
    rows = re.findall(r"^\| `([\w-]+)` \| (\S+) \| .+ \| ([^|]+) \|$", page.read_text("utf-8"), re.MULTILINE)
    assert rows == [
        (kind.name, LEVELS[kind.level] if chinese else kind.level, MENDED[kind.mended] if chinese else kind.mended)
        for kind in KINDS.values()
    ]


@each_page
def test_the_functions_of_expressions_are_those_of_the_code(page: Path) -> None:
    text = page.read_text("utf-8")
    assert all(re.search(rf"`{name}[`(]", text) for name in FUNCTIONS)
