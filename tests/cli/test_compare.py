"""`luthier compare`: who answers, what is asked, and how it is shown."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from luthier.cli.app import run
from luthier.runs.folder import create_run
from luthier.runs.writer import RunWriter


class Voice:
    """Says its name and the question."""

    def __init__(self, name: str) -> None:
        self.name = name

    def answers(self, questions: list[Any], *, system: str | None, tools: Any, thinking: bool | None, **decoding: Any) -> Any:
        assert decoding["seed"] == 3 or decoding["max_new_tokens"] == 256
        texts = [question if isinstance(question, str) else question[-1]["content"] for question in questions]
        return [SimpleNamespace(text=f"{self.name}: {text}\n") for text in texts]


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A folder with two runs, and what was loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    for name, steps, path in (("first", (10, 20), "tiny"), ("second", (20,), "tiny"), ("other", (20,), "model")):
        folder = create_run("runs", name)
        with RunWriter(folder) as writer:
            writer.status("done")
        folder.recipe.write_text(yaml.safe_dump({"model": path, "data": {"train": "rows.json"}}))
        for place in (*map(folder.checkpoint, steps), folder.final):
            place.mkdir(parents=True)
            (place / "adapter_config.json").write_text("{}")
    calls: list[tuple[Any, ...]] = []

    def load_chat(name: str, **which: Any) -> Voice:
        calls.append((name, which))
        return Voice(f"{name} {which}")

    monkeypatch.setitem(sys.modules, "luthier.workshop", SimpleNamespace(load_chat=load_chat))
    return calls


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(["compare", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["compare", *arguments]) == 2
    return capsys.readouterr().err


def test_a_run_stands_beside_its_base(loaded: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "first", "--prompt", "a", "--prompt", "黄", "--checkpoint", "10"]) == 0
    plain = capsys.readouterr().out
    assert loaded == [("first", {"base": True}), ("first", {"checkpoint": 10})]
    base, tuned = "first {'base': True}", "first {'checkpoint': 10}"
    assert plain == f"prompt: a\nbase:   {base}: a\ntuned:  {tuned}: a\n\nprompt: 黄\nbase:   {base}: 黄\ntuned:  {tuned}: 黄\n"
    (row,) = compared(capsys, "first@10", "--prompt", "黄")
    assert row == {"prompt": "黄", "base": f"{base}: 黄", "tuned": f"{tuned}: 黄"}


def test_runs_and_checkpoints_are_columns_beside_their_base(loaded: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = compared(capsys, "first", "second", "--checkpoints", "all", "--prompt", "a")
    assert list(row) == ["prompt", "base", "first, step 10", "first, step 20", "first", "second, step 20", "second"]
    (row,) = compared(capsys, "first", "--checkpoints", "20,10", "--prompt", "a", "--no-base")
    assert list(row) == ["prompt", "first, step 10", "first, step 20", "first"]
    (row,) = compared(capsys, "first@20", "other", "--prompt", "a")
    assert list(row) == ["prompt", "base of first", "base of other", "first, step 20", "other"]
    assert loaded[-4:] == [
        ("first", {"base": True}),
        ("other", {"base": True}),
        ("first", {"checkpoint": 20}),
        ("other", {}),
    ]


def test_models_are_columns_too(loaded: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to be compared with" in refused(capsys, "model", "--prompt", "a")
    (row,) = compared(capsys, "model", "tiny", "--prompt", "a")
    assert list(row) == ["prompt", "model", "tiny"]
    (row,) = compared(capsys, "model", "--adapter", "x", "--prompt", "a")
    assert list(row) == ["prompt", "base", "tuned"]
    assert loaded[-2:] == [("model", {}), ("model", {"adapter": Path("x")})]


def test_what_makes_no_sense_is_refused_before_anything_is_loaded(loaded: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    for said, *arguments in (
        ("there is nothing to ask", "first"),
        ("has no checkpoint 10. It has: 20", "first", "second", "--checkpoints", "10"),
        ("cannot be read: `ten`", "first", "--checkpoints", "ten"),
        ("contradict each other", "first", "--checkpoints", "all", "--checkpoint", "10"),
        ("has no checkpoints", "tiny", "--adapter", "x", "--checkpoints", "all"),
        ("goes with one model", "tiny", "first", "--adapter", "x"),
        ("`first` is named twice", "first", "first"),
        ("nothing to compare with", "first", "--no-base"),
    ):
        ask = () if said == "there is nothing to ask" else ("--prompt", "a")
        assert said in refused(capsys, *arguments, *ask)
    assert not loaded


def test_questions_come_from_a_file_of_any_format(loaded: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": "a", "input": "", "output": "A"}, {"instruction": "b", "input": "", "output": "B"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    first, second = compared(capsys, "first", "--prompt", "?", "--file", "rows.json", "--limit", "1")
    assert (first["prompt"], second["prompt"], second["reference"]) == ("?", "a", "A")
    talk = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}, {"from": "human", "value": "z"}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"conversations": talk}) + "\n")
    (row,) = compared(capsys, "first", "--file", "talk.jsonl")
    assert row["prompt"] == "user: x\nassistant: y\nuser: z"
    assert row["tuned"].endswith(": z")


def test_the_page_escapes_what_people_and_models_wrote(
    loaded: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = "<script>alert(1)</script>\n黄 & 'quoted' \"text\""
    page = tmp_path / "page.html"
    arguments = ("first", "second", "--prompt", attack, "--html", str(page), "--system", "<b>", "--seed", "3")
    assert run(["compare", *arguments]) == 0
    assert capsys.readouterr().out == ""
    text = page.read_text("utf-8")
    assert "<script" not in text
    assert not re.search(r"(?:src|href|url)\s*[=(]", text), "nothing is fetched"
    shown = [html.unescape(part) for part in re.findall(r'<div class="text"[^>]*>(.*?)</div>', text, re.DOTALL)]
    assert shown == ["<b>", *(f"{voice}: {attack}" for voice in ("first {'base': True}", "first {}", "second {}"))]
    for words in ("Comparison · 对比", "Question · 问题", "base · 底座", "seed 3"):
        assert words in text


def test_a_table_is_drawn_where_it_can_be_read(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.cli import compare as module

    rows = [module.Row("\x1b[2J[red]?", None, {"base": "one", "first": "two"})]
    monkeypatch.setenv("FORCE_COLOR", "1")
    for width, table in ((80, True), (50, False)):
        monkeypatch.setenv("COLUMNS", str(width))
        module._print(rows)
        text = capsys.readouterr().out
        assert ("│" in text) == table
        assert "\ufffd[2J[red]?" in text.replace("\n", "")


def test_two_real_models_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.chat_folders import adapter_folder, model_folder

    monkeypatch.chdir(tmp_path)
    base = model_folder("qwen3", tmp_path / "base")
    adapter_folder("qwen3", tmp_path / "adapter", base)
    (row,) = compared(capsys, "base", "adapter", "--prompt", "Hello", "--max-new-tokens", "4")
    assert list(row) == ["prompt", "base", "adapter"]
    assert row["base"] != row["adapter"]
