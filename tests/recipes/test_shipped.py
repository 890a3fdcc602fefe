"""Every recipe that is shipped can be started as it says."""

from __future__ import annotations

import json
import shlex

import pytest

from luthier.recipe.load import load_recipe, read_values
from luthier.recipe.pipeline import is_pipeline, load_pipeline
from luthier.recipe.shipped import first_comment, shipped_recipes

RECIPES = shipped_recipes()
BUILT = {"tiny/pretrain", "tiny/chat"}
"""Recipes whose inputs are made by recipes/tiny/build.py."""


@pytest.mark.parametrize("name", RECIPES)
def test_loads_and_says_what_it_needs_and_gives(name):
    path = RECIPES[name]
    recipes = [part.recipe for part in load_pipeline(path).parts] if is_pipeline(path) else [load_recipe(path)]
    comment = first_comment(path)
    command = shlex.split(comment[0])
    if name in BUILT:
        assert command[:2] == ["python", "recipes/tiny/build.py"]
    else:
        assert command[:3] == ["luthier", "train", f"recipes/{name}.yaml"]
        sources = [source for recipe in recipes for source in recipe.data.train]
        assert all(source.path and (path.parent / source.path).is_file() for source in sources)
        if len(recipes) == 1:
            load_recipe(path, command[3:])
    for word in ("Needs:", "Gives:"):
        assert any(line.startswith(word) for line in comment), word


def test_no_run_name_is_taken_twice():
    """A name in a shipped recipe would make its second start fail; the two halves of the embedded model resume by theirs."""
    assert {name for name, path in RECIPES.items() if read_values(path).values.get("name")} == BUILT


def test_identity_is_literal_and_bilingual(root):
    rows = json.loads((root / "recipes/tiny/identity.json").read_text("utf-8"))
    assert len(rows) == len({row["instruction"] for row in rows}) == 60
    text = json.dumps(rows, ensure_ascii=False)
    assert not any(mark in text for mark in ("{{", "}}", "<NAME>", "<AUTHOR>"))
    answers = {row["instruction"]: row["output"] for row in rows}
    assert "我是黄大力的智能助手" in answers["你是谁？"]
    assert "I am Huang Dali's AI assistant" in answers["Who are you?"]
    chinese = sum(any("\u4e00" <= character <= "\u9fff" for character in row["instruction"]) for row in rows)
    assert chinese == 30
