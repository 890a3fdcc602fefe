"""Rewards of the answer's form: an expression, a length, a JSON schema."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.objectives.rewards import build
from luthier.objectives.rewards.fenced import last_block
from tests.objectives.rewards.answers import answer, settings, value

THINK = {"type": "format_regex", "pattern": "<think>.*</think>\\s*\\S.*"}
HAN = {"type": "format_regex", "pattern": r"[\p{Han}，。]+"}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "张|^(a|aa)+$"}, "age": {"type": "integer"}},
    "required": ["name"],
}


@pytest.mark.parametrize(
    ("written", "text", "expected"),
    [
        (THINK, "<think>\n2 + 2\n</think>\n4", 1),
        (THINK, " <think></think>四\n", 1),
        (THINK, "<think>2 + 2</think>", 0),
        (THINK, "4 <think>2 + 2</think> 4", 0),
        ({**THINK, "match": "anywhere"}, "4 <think>2 + 2</think> 4", 1),
        (HAN, "你好，世界。", 1),
        (HAN, "你好, world", 0),
        ({"type": "format_regex", "pattern": "(a|aa)+"}, "a" * 60 + "b", "the pattern takes too long"),
    ],
)
def test_format(written, text, expected):
    assert value(written, text) == expected


@pytest.mark.parametrize(
    ("options", "length", "expected"),
    [
        ({"min": 10, "max": 20}, 10, 1),
        ({"min": 10, "max": 20}, 20, 1),
        ({"min": 10, "max": 20}, 9, 0),
        ({"min": 10, "max": 20}, 21, 0),
        ({"min": 10, "max": 20, "margin": 10}, 25, 0.5),
        ({"min": 10, "max": 20, "margin": 4}, 9, 0.75),
        ({"min": 10, "max": 20, "margin": 4}, 24, 0),
        ({"min": 10}, 10_000, 1),
        ({"max": 10}, 0, 1),
        # DAPO's equation 13 with L_max = 100 and L_cache = 20
        ({"shape": "overlong", "max": 100, "margin": 20}, 80, 0),
        ({"shape": "overlong", "max": 100, "margin": 20}, 90, -0.5),
        ({"shape": "overlong", "max": 100, "margin": 20}, 100, -1),
        ({"shape": "overlong", "max": 100, "margin": 20}, 101, -1),
        ({"shape": "overlong", "max": 100}, 100, 0),
        ({"shape": "overlong", "max": 100}, 101, -1),
    ],
)
def test_length(options, length, expected):
    assert value({"type": "length", **options}, "", tokens=length) == pytest.approx(expected)
    assert value({"type": "length", "unit": "characters", **options}, "字" * length, tokens=7) == pytest.approx(expected)


TRL = pytest.importorskip("trl.rewards.other_rewards")


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 200))
def test_overlong_is_that_of_trl(limit, margin, length):
    other = TRL.get_soft_overlong_punishment(max_completion_len=limit, soft_punish_cache=margin)
    if margin <= limit:
        ours = value({"type": "length", "shape": "overlong", "max": limit, "margin": margin}, "", tokens=length)
        assert ours == pytest.approx(other([[1] * length])[0])


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 30), st.integers(0, 150))
def test_length_falls_away_from_the_range(low, wide, margin, length):
    reward = {"type": "length", "min": low, "max": low + wide + 1, "margin": margin}
    here, nearer = (value(reward, "", tokens=n) for n in (length, length - 1 if length > low + wide else length + 1))
    assert 0 <= here <= nearer <= 1 or (here == 1 and nearer == 1)


SCHEMA = {"type": "json_schema", "inline": PERSON, "parsed": 0.25}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "张三", "age": 3}', 1),
        ('```json\n{"name": "aaa"}\n```', 1),
        ('Here it is:\n```\n{"name": "aaa"}\n```\nand that is all', 1),
        ('{"age": 3}', 0.25),
        ('{"name": "aaa", "age": "3"}', 0.25),
        ("[1, 2]", 0.25),
        ('{"name": "aaa"', 0),
        ("张三", 0),
        ('{"name": "aaa", "age": NaN}', 0),
        ("[" * 100_000, 0),
        ("9" * 10_000, 0),
    ],
)
def test_json(text, expected):
    pytest.importorskip("jsonschema")
    assert value(SCHEMA, text) == expected


def test_a_schema_from_a_file_or_from_the_reference(tmp_path):
    pytest.importorskip("jsonschema")
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(PERSON), "utf-8")
    assert value({"type": "json_schema", "file": str(file)}, '{"name": "张"}') == 1
    assert value("json_schema", "3", '{"type": "integer"}') == 1
    assert value("json_schema", "3.5", '{"type": "integer"}') == 0
    assert value("json_schema", "3", None) == "the prompt has no reference"
    assert value("json_schema", "3", "whole number").startswith("the reference is not a JSON schema")
    assert value("json_schema", "3", '{"type": "whole"}').startswith("the reference is not a JSON schema")


def test_hostile_schemas_and_answers_are_bad():
    pytest.importorskip("jsonschema")
    assert "TimeoutError" in value(SCHEMA, json.dumps({"name": "a" * 60 + "b"}))
    for schema in ({"$ref": "http://127.0.0.1:9/schema.json"}, {"$ref": "file:///etc/passwd"}, {"$ref": "#"}):
        assert value({"type": "json_schema", "inline": schema}, "3").startswith("the schema cannot be used")


def test_schemas_that_are_none_are_mistakes(tmp_path):
    pytest.importorskip("jsonschema")
    for written, said in (
        ({"inline": {"type": "whole"}}, "stage.rewards: is not a JSON schema"),
        ({"file": str(tmp_path / "no.json")}, "cannot be read: No such file"),
    ):
        with pytest.raises(UserError, match=said):
            build(settings({"type": "json_schema", **written})[0])


@pytest.mark.parametrize("name", ["jsonschema", "math_verify"])
def test_a_library_that_is_absent_is_one_line(name, monkeypatch):
    import importlib.util
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs the package .*pip install 'luthier\[rewards\]'"):
        build(settings({"jsonschema": "json_schema"}.get(name, name))[0])


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("no block", None),
        ("```python\na\nb\n```", "a\nb"),
        ("```\na\n```\ntext\n```py\nb\n```\nend", "b"),
        ("```python\nnot closed", "not closed"),
        ("```python\na\n```\n```", "a"),
        ("  ```json\n  {}\n  ```", "  {}"),
    ],
)
def test_the_last_fenced_block(text, block):
    assert last_block(text) == block


def test_a_whole_rollout_at_once():
    reward = build(settings(THINK)[0])
    assert reward([answer("<think></think>1"), answer("1"), answer("<think>x</think>\n\n2")]) == [1, 0, 1]
