"""The usual mistakes of the troubleshooting pages are made, and Luthier says what the pages show; and what the comparison says of it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import luthier
from luthier.cli.app import run
from tests.repo.pages import blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs/troubleshooting.md", ROOT / "docs/troubleshooting.zh.md"]
FILES = {
    "comma.json": '[\n  {"instruction": "Open?", "output": "At nine."}\n  {"instruction": "Where?", "output": "Here."}\n]\n',
    "missing.json": '[\n  {"instruction": "Open?", "output": "At nine."},\n  {"instruction": "Where?"}\n]\n',
    "faq.csv": "frage,antwort\nWann?,Um neun.\n",
    "tab.yaml": "model: tiny\ndata:\n\ttrain: my.json\n",
}


def mistakes(page: Path) -> list[tuple[str, str]]:
    """(what is typed, what is said) of each block that begins with a prompt."""
    shown = [block for block in blocks(page, "text") if block.startswith("$ ")]
    return [(block.partition("\n")[0].removeprefix("$ "), block.partition("\n")[2]) for block in shown]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = ROOT / "docs/first-run.md"
    (recipe,), (data,) = blocks(first, "yaml"), blocks(first, "json")
    for name, text in {**FILES, "first.yaml": recipe, "my.json": data}.items():
        Path(name).write_text(text, "utf-8")
    return tmp_path


def said(capsys, *arguments: str) -> str:
    """What a mistake makes Luthier say."""
    assert run(arguments) == 2
    return capsys.readouterr().err


def test_there_are_ten_and_both_languages_show_the_same():
    english, chinese = map(mistakes, PAGES)
    assert len(english) == 10
    assert english == chinese


@pytest.mark.parametrize(("typed", "shown"), mistakes(PAGES[0]), ids=lambda text: text[:60])
def test_a_mistake_is_answered_as_the_page_shows(workplace, capsys, typed, shown):
    if "already there" in shown or "chat" in typed:
        luthier.train("first.yaml", overrides=["train.max_steps=1", "evaluate.samples.prompts=[]"], progress=False)
        capsys.readouterr()
    assert said(capsys, *shlex.split(typed)[1:]) == shown


def test_the_remedies_of_the_page_work(workplace, capsys):
    columns = re.search(r"'(data\.train=\{path: faq.csv.*?)'", PAGES[0].read_text("utf-8"))
    assert run(["data", "stats", "first.yaml", columns[1]]) == 0
    assert run(["data", "stats", "first.yaml", "data.train=missing.json", "data.on_error=skip"]) == 0
    assert "missing.json:3: missing `output`" in capsys.readouterr().out


def rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"What is {number}?", "input": "", "output": f"It is {number}."} for number in range(count)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [*lines[:7], lines[7][:20], *lines[8:]], r"^error: rows\.jsonl:8: broken JSON: \S.*\n$"),
        (lambda lines: [*lines[:7], '{"instruction": "What?"}', *lines[8:]], r"^error: rows\.jsonl:8: missing `output`\n$"),
        (lambda lines: [], r"^error: rows\.jsonl: is empty\n$"),
    ],
    ids=["half a line", "no answer", "empty file"],
)
def test_the_comparison_says_what_luthier_does_with_broken_data(workplace, capsys, damage, message):
    lines = [json.dumps(row) for row in rows(16)]
    Path("rows.jsonl").write_text("\n".join(damage(lines)), "utf-8")
    assert re.search(message, said(capsys, "data", "preview", "first.yaml", "data.train=rows.jsonl"))


def test_the_comparison_says_what_luthier_does_with_too_long_rows(workplace, capsys):
    long = {"instruction": "Count.", "output": " and ".join(map(str, range(200)))}
    Path("rows.json").write_text(json.dumps([*rows(15), long]), "utf-8")
    for settings, wanted in (([], r"truncated: [1-9]"), (["data.truncate=drop"], r"left out as too long: [1-9]")):
        assert run(["data", "stats", "first.yaml", "data.train=rows.json", "data.max_length=64", *settings]) == 0
        assert re.search(wanted, capsys.readouterr().out)


def test_the_names_of_other_tools_lead_to_fields():
    from luthier.recipe.help import fields

    keys = {field.key for field in fields()}
    for page in (ROOT / "docs/compare.md", ROOT / "docs/compare.zh.md"):
        table = page.read_text("utf-8").partition("{: #names }")[2]
        ours = [re.findall(r"`([^`]+)`", line.split("|")[4]) for line in table.splitlines() if line.startswith("| `")]
        assert len(ours) > 12
        named = {name for names in ours for name in names if re.fullmatch(r"[a-z_.]+", name)}
        assert named <= keys, named - keys
