"""Placeholders and names: filled everywhere that people wrote, nowhere else, and once."""

from __future__ import annotations

from pathlib import Path

from luthier.data.examples import Conversation, Document, Origin, Preference, Prompt
from luthier.data.fill import Filler
from luthier.data.problems import Problems
from luthier.data.read_examples import read_examples
from luthier.recipe.schema import Source

HERE = Origin("here", 1, 0)


def test_every_spelling_of_a_placeholder() -> None:
    fill = Filler({"name": "Luthier", "author": "us"}, {"old": "new"})
    assert fill.text("{{name}} {{ name }} {{name }} <NAME> <AUTHOR> old") == "Luthier Luthier Luthier Luthier us new"
    assert fill.text("{name} <name> {{other}} NAME") == "{name} <name> {{other}} NAME"


def test_what_was_put_in_is_not_replaced_again_and_the_longest_match_wins() -> None:
    assert Filler({}, {"a": "b", "b": "a", "ab": "X"}).text("a b ab") == "b a X"
    assert Filler({"name": "{{name}}"}, {}).text("{{name}}") == "{{name}}"


def test_only_what_people_wrote_changes() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "x", "arguments": {"x": "x", "deep": ["x", 1]}}}
    messages = (
        {"role": "user", "content": "x", "name": "x"},
        {"role": "assistant", "content": "", "reasoning_content": "x", "tool_calls": [call], "weight": 0.5},
    )
    tools = ({"type": "function", "function": {"name": "x", "description": "x", "parameters": {"enum": ["x"], "type": "x"}}},)
    fill = Filler({}, {"x": "y", "user": "z"})
    filled = fill(Conversation(messages, HERE, tools))
    assert isinstance(filled, Conversation)
    assert filled.messages[0] == {"role": "user", "content": "y", "name": "x"}
    assert filled.messages[1]["reasoning_content"] == "y"
    assert filled.messages[1]["tool_calls"] == [{**call, "function": {"name": "x", "arguments": {"x": "y", "deep": ["y", 1]}}}]
    assert filled.tools is not None
    assert filled.tools[0]["function"]["description"] == "y"
    assert filled.tools[0]["function"]["name"] == "x"
    assert filled.tools[0]["function"]["parameters"]["type"] == "x"


def test_every_kind_of_example() -> None:
    fill, ask, answer = Filler({}, {"x": "y"}), ({"role": "user", "content": "x"},), ({"role": "assistant", "content": "x"},)
    assert fill(Document("x", HERE)) == Document("y", HERE)
    assert fill(Prompt(ask, HERE, "x")) == Prompt(({"role": "user", "content": "y"},), HERE, "y")
    pair = fill(Preference(ask, answer, answer, HERE))
    assert isinstance(pair, Preference)
    assert {part[0]["content"] for part in (pair.prompt, pair.chosen, pair.rejected)} == {"y"}
    document = Document("x", HERE)
    assert Filler({}, {})(document) is document


def test_the_identity_sets_are_filled(shared: Path) -> None:
    fill = Filler({"name": "黄大力", "author": "我们"}, {"尖米": "黄大力"})
    for name in ("llamafactory/identity.json", "sft/self_cognition.json", "xtuner/assistant_Tuner_500.jsonl"):
        source = Source(path=str(shared / "data" / name))
        plain = "".join(str(example) for example in read_examples(source, Problems()))
        filled = "".join(str(example) for example in read_examples(source, Problems(), fill=fill))
        for mark in ("{{name}}", "{{author}}", "<NAME>", "<AUTHOR>", "尖米"):
            assert mark not in filled
        assert any(mark in plain for mark in ("{{name}}", "<NAME>", "尖米"))
        assert "黄大力" in filled
