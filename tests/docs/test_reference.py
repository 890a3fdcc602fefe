"""The reference pages hold every field and every command, and each text is there in Chinese."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier.cli.app import app
from luthier.recipe.help import fields

SOURCE = Path(__file__).resolve().parents[2] / "docs/_reference/pages.py"
spec = importlib.util.spec_from_file_location("reference_pages", SOURCE)
assert spec is not None
assert spec.loader is not None
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)

COMMANDS = [path for path, _ in pages.commands()]


def test_every_text_of_fields_and_commands_has_a_translation():
    missing = sorted(pages.texts() - set(pages.catalogue()))
    assert not missing, f"add these (or mend their `en`, if the English has changed) in docs/_reference/zh.yaml: {missing}"


def test_no_translation_is_left_over():
    left = sorted(set(pages.catalogue()) - pages.texts())
    assert not left, f"nothing says this any more; mend or delete it in docs/_reference/zh.yaml: {left}"


def test_translations_are_chinese():
    assert not [english for english, text in pages.catalogue().items() if not re.search(r"[\u4e00-\u9fff]", text)]


def test_code_in_a_text_is_code_in_its_translation():
    code = re.compile(r"`[^`]+`")
    for english, text in pages.catalogue().items():
        assert set(code.findall(english)) <= set(code.findall(text)), english


def test_every_field_has_a_row():
    rows = re.findall(r"^\| \[?`(\w+)`", pages.recipe_reference(str), re.MULTILINE)
    sections = {field.key.rpartition(".")[0] for field in fields()}
    assert {field.key.rpartition(".")[2] for field in fields()} <= set(rows)
    for key in sections - {""}:
        assert f"#{key}" in pages.recipe_reference(str)


def test_values_are_told_from_kinds_of_values():
    page = pages.recipe_reference(pages.chinese)
    assert "`classification` · `text`<br>" in page  # a format called text …
    assert "| `path` | 文字<br>" in page  # … and a field that takes text


@pytest.mark.parametrize("path", COMMANDS)
def test_commands_are_as_help_tells_them(path):
    shown = CliRunner().invoke(app, [*path.split()[1:], "--help"])
    assert shown.exit_code == 0
    columns = re.findall(r"^  (-.*?)(?:  |$)", shown.output.partition("Options:")[2], re.MULTILINE)
    options = {word for column in columns for word in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", column)} - {"-h", "--help"}
    section = pages.command_reference(str).partition(f"`{path}` {{")[2].split("\n#")[0]
    if "| Name |" in section:
        described = set(
            re.findall(r"`(--?[a-z][a-z-]*)", "\n".join(re.findall(r"^\| [^|]*", section.replace("\\|", " "), re.MULTILINE)))
        )
        assert described == options
    else:
        assert "Commands:" in shown.output or not options


def test_the_command_tree_is_whole():
    listed = re.findall(r"^  (\w+) {2,}", CliRunner().invoke(app, ["--help"]).output.partition("Commands:")[2], re.MULTILINE)
    assert {path.split()[1] for path in COMMANDS} == set(listed)
