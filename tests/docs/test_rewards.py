"""The page about rewards: its lists are recipes', its tables are true, and its Python does what it says."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import TypeAdapter

from luthier.objectives.rewards.code import read_tests
from luthier.objectives.rewards.http import _written
from luthier.recipe.schema import GRPO, Stage
from luthier.recipe.sections.rewards import Reward, Weighted
from tests.docs.test_reference import pages
from tests.objectives.rewards.answers import answer, value
from tests.repo.pages import blocks

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [DOCS / "rewards.md", DOCS / "rewards.zh.md"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_lists_of_rewards_are_read(page):
    for block in blocks(page, "yaml"):
        stage = TypeAdapter(Stage).validate_python(yaml.safe_load(block)["stage"])
        assert isinstance(stage, GRPO)
        assert [reward.title() for reward in stage.rewards] == ["exact_match", "format_regex", "length", "python"]


@each_page
def test_every_reward_is_in_the_table(page):
    types = [get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(get_args(Reward)[0])]
    assert re.findall(r"^\| `(\w+)` \|", page.read_text("utf-8").partition("{: #exact-match }")[0], re.MULTILINE) == [
        "type",
        *types,
    ]


def test_every_option_is_told():
    told = pages.reward_reference(pages.chinese)
    for kind in get_args(get_args(Reward)[0]):
        own = told.partition(f"`{kind.model_fields['type'].default}`: ")[2].partition("\n\n`")[0]
        options = {*kind.model_fields} - {*Weighted.model_fields, "type"}
        assert {*re.findall(r"^\| `(\w+)`", own, re.MULTILINE)} == options


@each_page
def test_the_table_of_exact_matches_is_true(page):
    rows = re.findall(r"^\| (`.*) \| `(\w+)` \| `(.+)` \| ([01])", page.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 7
    for text, extract, reference, reward in rows:
        said = "\n".join(re.findall(r"`([^`]+)`", text))
        assert value({"type": "exact_match", "extract": extract}, said, reference) == int(reward), text


@each_page
def test_the_forms_of_tests_are_told_apart(page):
    (block,) = blocks(page, "text")
    kinds = [[type(test) for test in read_tests(re.split("  +", line)[0])] for line in block.splitlines()]
    assert kinds == [[str], [str, str], [dict]]


@each_page
def test_the_python_prints_what_it_says(page):
    own, example = blocks(page, "python")
    space: dict[str, object] = {}
    exec(own, space)
    assert space["polite"]([answer("Please!"), answer("No.")]) == [1, 0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(example, {})
    assert f"`{printed.getvalue().strip()}`" in page.read_text("utf-8").rpartition("```")[2]


@each_page
def test_the_request_is_what_is_sent(page):
    (sent,) = json.loads(blocks(page, "json")[0])["answers"]
    assert set(sent) == set(_written(answer("46")))
