"""What README and docs tell people to type works, and what they link to is there."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path

import pytest
import typer
import yaml

import luthier
from luthier.cli.app import app
from luthier.data.problems import Problems
from luthier.data.read_examples import read_examples
from luthier.recipe.load import load_recipe, recipe_from
from luthier.recipe.pipeline import is_pipeline, load_pipeline
from luthier.recipe.schema import Source
from luthier.recipe.shipped import find_shipped

from . import pages

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
PAGES = [*READMES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LUTHIER = sorted({line for page in PAGES for line in pages.commands(page) if line.startswith("luthier ")})


def parsed(command: str) -> dict[str, object]:
    """Parse a `luthier …` line with the real command tree, without running it; the parameters of the last command."""
    words = shlex.split(command)[1:]
    node = typer.main.get_command(app)
    while hasattr(node, "commands"):
        name, *words = words
        assert name in node.commands, f"No such command: {name}"
        node = node.commands[name]
    return node.make_context(name, words).params


@pytest.mark.parametrize("command", LUTHIER)
def test_commands_parse(command):
    assert isinstance(parsed(command), dict)


def test_a_command_that_is_not_there_would_be_found():
    with pytest.raises(Exception, match="No such"):
        parsed("luthier trian first.yaml")
    with pytest.raises(Exception, match="No such"):
        parsed("luthier chat first --promt hello")


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_overrides_fit_the_recipe_beside_them(page, tmp_path):
    """Each `luthier train` of the page is loaded, with its overrides, on the recipe that the page shows or that is shipped."""
    (tmp_path / "first.yaml").write_text(pages.blocks(page, "yaml")[0], "utf-8")
    trainings = [shlex.split(line)[2:] for line in pages.commands(page) if line.startswith("luthier train ")]
    assert len(trainings) >= 3
    for recipe, *rest in trainings:
        path = tmp_path / recipe if recipe == "first.yaml" else find_shipped(recipe)
        load_recipe(path, [word for word in rest if "=" in word and not word.startswith("-")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_on_the_page_load(page, tmp_path):
    rest = (
        {"model": "tiny", "data": {"train": "my.json"}} if page.parent.name == "docs" else {}
    )  # pages of the docs also show parts of a recipe
    for block in pages.blocks(page, "yaml"):
        values = rest | yaml.safe_load(block)
        if "rewards" in values:
            continue  # a part of a stage; tests/docs/test_rewards.py reads it
        if is_pipeline(values):
            assert load_pipeline(values).parts
        else:
            recipe_from(values, tmp_path)


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_example_data_is_read(page, tmp_path):
    (block,) = pages.blocks(page, "json")
    assert len(json.loads(block)) == 2
    (tmp_path / "my.json").write_text(block, "utf-8")
    problems = Problems("fail")
    examples = list(read_examples(Source(path=str(tmp_path / "my.json")), problems, stage="sft", system=None))
    problems.finish()
    assert [example.messages[-1]["role"] for example in examples] == ["assistant", "assistant"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_the_page_uses_names_that_exist(page):
    for block in pages.blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "luthier":
                assert hasattr(luthier, node.attr), node.attr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in pages.local_links(page):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_both_readmes_tell_the_same_commands():
    english, chinese = READMES
    assert pages.commands(english) == pages.commands(chinese)
    assert len(pages.blocks(english, "yaml")) == len(pages.blocks(chinese, "yaml"))


@pytest.mark.parametrize("page", [*READMES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for line in pages.commands(page):
        if line.startswith("make "):
            assert f"\n{line.split()[1]}:" in makefile, line
