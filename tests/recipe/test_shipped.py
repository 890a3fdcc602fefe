"""Shipped recipes, their command line, and the help that is taken from the schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier.cli.recipes import recipes_app
from luthier.errors import UserError
from luthier.recipe import shipped
from luthier.recipe.help import fields, json_schema
from luthier.recipe.load import load_recipe
from luthier.recipe.pipeline import is_pipeline, load_pipeline
from luthier.recipe.shipped import copy_shipped, find_shipped, first_comment, shipped_recipes, summary

RECIPE = """\
# luthier train recipes/one/first.yaml
#
# Teaches a name to the embedded model.
model: tiny
data:
  train: [data/a.json, {path: ../b.json}] # two files
  template: own.jinja
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    recipes = tmp_path / "recipes"
    (recipes / "one").mkdir(parents=True)
    (recipes / "one" / "first.yaml").write_text(RECIPE)
    monkeypatch.setattr(shipped, "shipped_folder", lambda: recipes)
    return recipes


def test_recipes_of_the_checkout_are_found_and_valid(root: Path) -> None:
    for name, path in shipped_recipes().items():
        assert path.is_relative_to(root / "recipes")
        assert load_pipeline(path).parts if is_pipeline(path) else load_recipe(path)
        assert len(first_comment(path)) >= 2, f"{name} should open with its command, what it needs and what it gives"
        assert summary(path)


def test_a_shipped_recipe_is_loaded_by_its_name(folder: Path) -> None:
    assert load_recipe("one/first").data.train[0].path == str(folder / "one/data/a.json")


def test_a_copy_of_several_stages_finds_the_data_of_each(tmp_path: Path) -> None:
    copy = load_pipeline(copy_shipped("tiny/rlhf", tmp_path / "mine.yaml"))
    assert all(Path(str(source.path)).is_file() for part in copy.parts for source in part.recipe.data.train)


def test_unknown_names_get_the_nearest(folder: Path) -> None:
    assert find_shipped("recipes/one/first.yaml") == folder / "one/first.yaml"
    with pytest.raises(UserError) as caught:
        find_shipped("one/frist")
    assert str(caught.value) == "no shipped recipe `one/frist`. Did you mean `one/first`?"


def test_a_copy_means_the_same_recipe_and_keeps_its_comments(folder: Path, tmp_path: Path) -> None:
    copy = copy_shipped("one/first", tmp_path / "mine.yaml")
    assert load_recipe(copy) == load_recipe("one/first")
    assert "# two files" in copy.read_text()
    with pytest.raises(UserError, match="exists already"):
        copy_shipped("one/first", copy)
    assert copy_shipped("one/first", tmp_path) == tmp_path / "first.yaml"


def test_command_line(folder: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(recipes_app, ["list"]).output == "one/first  Teaches a name to the embedded model.\n"
    assert run(recipes_app, ["show", "one/first"]).output == RECIPE
    assert run(recipes_app, ["copy", "one/first", str(tmp_path / "x.yaml")]).exit_code == 0
    assert (tmp_path / "x.yaml").exists()
    assert json.loads(run(recipes_app, ["schema"]).output)["title"] == "Recipe"


def test_every_field_has_its_docstring_and_type() -> None:
    by_key = {(field.key, field.only): field for field in fields()}
    assert all(field.text and field.type for field in fields())
    assert by_key["train.learning_rate", None].default == "0.0001"
    assert by_key["model.path", None].default is None
    assert by_key["method", None].type.startswith("full | freeze | lora | ")
    assert by_key["method.rank", "lora"].type == "whole number"
    assert by_key["train.micro_batch_tokens", None].type == "whole number | auto"
    assert by_key["report_to", None].type.startswith("list of (tensorboard | ")


def test_the_json_schema_knows_the_short_forms() -> None:
    schema = json_schema()
    short = next(part["enum"] for part in schema["properties"]["method"]["anyOf"] if "enum" in part)
    assert {"full", "freeze", "lora", "p_tuning"} <= set(short)
    assert {"type": "string"} in schema["properties"]["model"]["anyOf"]
    rewards = schema["$defs"]["GRPO"]["properties"]["rewards"]["anyOf"]
    for several in (rewards, rewards[0]["items"]["anyOf"]):
        assert "exact_match" in next(part["enum"] for part in several if "enum" in part)
    assert schema["properties"]["data"]["description"] == "What is learnt from."
    assert "from" in schema["properties"]["stages"]["items"]["properties"]
    assert {"required": ["stages"]} in schema["anyOf"]
    assert schema["$defs"]["LoRA"]["properties"]["rank"]["description"] == "Inner dimension of the adapters."


def test_the_recipe_room_loads_nothing_heavy() -> None:
    code = (
        "import sys, luthier.recipe.load, luthier.recipe.help, luthier.cli.recipes;"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pyarrow', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
