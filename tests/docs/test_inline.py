"""Commands within sentences and tables are commands, and what is said to work has one beside it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from luthier.recipe.load import load_recipe
from luthier.recipe.pipeline import is_pipeline, load_pipeline
from luthier.recipe.shipped import shipped_recipes
from tests.docs.test_reference import COMMANDS
from tests.repo.pages import blocks
from tests.repo.test_pages import parsed

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
PAGES = [*READMES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
INLINE = sorted({text for page in PAGES for text in re.findall(r"`(luthier [a-z][^`…]*)`", page.read_text("utf-8"))})


def promised(page: Path) -> list[list[str]]:
    """The cells of the table of what works."""
    table = page.read_text("utf-8").partition("|---|---|---|\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]


@pytest.mark.parametrize("command", INLINE)
def test_a_command_in_a_sentence_is_one(command):
    if command not in COMMANDS:  # a sentence may also speak of `luthier train` as such
        assert isinstance(parsed(command), dict)


def test_a_command_that_is_not_there_would_be_found():
    with pytest.raises(Exception, match="No such"):
        parsed("luthier trian first.yaml")


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_what_works_has_its_command(page, tmp_path):
    (tmp_path / "first.yaml").write_text(blocks(page, "yaml")[0], "utf-8")
    for *_, cell in promised(page):
        (command,) = re.findall(r"^`(luthier [^`]+)`$", cell)
        words = shlex.split(command)
        name = next((word for word in words if word in shipped_recipes() or word == "first.yaml"), None)
        if name:
            recipe = tmp_path / name if name == "first.yaml" else name
            read = load_pipeline if is_pipeline(recipe) else load_recipe
            read(recipe, [word for word in words if "=" in word and not word.startswith("-")])


def test_both_languages_promise_the_same():
    english, chinese = map(promised, READMES)
    assert len(english) > 10
    assert [row[-1] for row in english] == [row[-1] for row in chinese]
