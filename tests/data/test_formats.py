"""What rows mean: every format's examples, and the one line that each bad row gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.examples import Conversation, Document, Example
from luthier.data.formats.fields import structure_of
from luthier.data.problems import Problems, RowError
from luthier.data.read_examples import read_examples
from luthier.errors import UserError
from luthier.recipe.schema import Source

U, A, S = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))


def write(folder: Path, rows: list[Any], name: str = "d.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, stage: str = "sft", system: str | None = None, **options: Any) -> list[Example]:
    problems = Problems()
    examples = list(read_examples(Source(path=str(path), **options), problems, stage=stage, system=system))
    problems.finish()
    return examples


def one(folder: Path, row: Any, **options: Any) -> Conversation:
    [example] = read(write(folder, [row]), **options)
    assert isinstance(example, Conversation)
    return example


def refused(folder: Path, row: Any, **options: Any) -> str:
    """What is said about a bad row, without its place."""
    good = {"messages": [U, A]} if isinstance(row, list) or "messages" in row else {"instruction": "q", "output": "a"}
    good = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]} if "conversations" in row else good
    path = write(folder, [good, row])
    with pytest.raises(UserError) as caught:
        read(path, **options)
    place, _, said = str(caught.value).partition(":2: ")
    assert place == str(path)
    assert "\n" not in said
    return said


def talk(example: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in example.messages]


def test_alpaca(tmp_path: Path) -> None:
    assert talk(one(tmp_path, {"instruction": "Add", "input": "1 2", "output": "3"})) == [
        ("user", "Add\n1 2"),
        ("assistant", "3"),
    ]
    assert talk(one(tmp_path, {"instruction": "Hi", "input": "", "output": "{{name}}"})) == [
        ("user", "Hi"),
        ("assistant", "{{name}}"),
    ]
    full = {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]], "text": "all", "id": 4}
    assert talk(one(tmp_path, full)) == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    assert talk(one(tmp_path, {**full, "history": '[["a", "b"]]', "system": None})) == talk(one(tmp_path, full))[1:]
    assert talk(one(tmp_path, {"instruction": "q", "output": ""})) == [("user", "q"), ("assistant", "")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "q"}, "missing `output`"),
        ({"instruction": "q", "output": None}, "`output` is null"),
        ({"instruction": "q", "output": 3}, "`output` is a number, it should be text"),
        ({"instruction": "q", "output": ["a"]}, "`output` is a list, it should be text"),
        ({"instruction": " ", "output": "a"}, "`instruction` is empty"),
        ({"output": "a"}, "missing `instruction`"),
        ({"instruction": {}, "output": "a"}, "`instruction` is a mapping, it should be text"),
        ({"instruction": "q", "output": "a", "history": 3}, "`history` is a number, it should be a list of [question, answer]"),
        (
            {"instruction": "q", "output": "a", "history": [["a", "b"], ["c"]]},
            "`history` entry 2 should be [question, answer], two texts",
        ),
        ({"instruction": "q", "output": "a", "history": [["", "b"]]}, "`history` entry 1: the question is empty"),
        (
            {"instruction": "q", "output": "a", "tools": "[{"},
            "`tools` is not JSON: Expecting property name enclosed in double quotes",
        ),
        ({"instruction": "q", "output": "a", "tools": [{"x": 1}]}, "`tools` entry 1 has no `function`"),
        ({"instruction": "q", "output": "a", "images": ["x.png"]}, "has `images`; only text is read"),
    ],
)
def test_bad_alpaca_rows(tmp_path: Path, row: Any, said: str) -> None:
    assert refused(tmp_path, row) == said


def test_own_column_names(tmp_path: Path) -> None:
    columns = {"instruction": "ask", "output": "answer"}
    assert talk(one(tmp_path, {"ask": "q", "answer": "a", "input": "i"}, columns=columns)) == [
        ("user", "q\ni"),
        ("assistant", "a"),
    ]
    path = write(tmp_path, [{"ask": "q", "answer": "a"}, {"ask": "q"}])
    with pytest.raises(UserError, match=r":2: missing `answer`"):
        read(path, columns=columns)
    with pytest.raises(UserError, match=r"has no `instructoin`. Did you mean `instruction`\?"):
        read(path, format="alpaca", columns={"instructoin": "ask"})


def test_sharegpt_with_tools(tmp_path: Path) -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "area?"},
            {"from": "function_call", "value": '{"name": "area", "arguments": {"sides": [5, 3]}}'},
            {"from": "observation", "value": '{"area": 15}'},
            {"from": "gpt", "value": "15"},
        ],
        "tools": '[{"name": "area", "parameters": {}}]',
        "system": "Be brief.",
    }
    example = one(tmp_path, row)
    call = {"id": "call00001", "type": "function", "function": {"name": "area", "arguments": {"sides": [5, 3]}}}
    assert example.tools == ({"type": "function", "function": {"name": "area", "parameters": {}}},)
    assert example.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "area?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": '{"area": 15}', "name": "area", "tool_call_id": "call00001"},
        {"role": "assistant", "content": "15"},
    )
    assert one(tmp_path, {**row, "tools": "[]"}).tools is None


def test_text_before_a_call_and_parallel_calls_are_one_turn(tmp_path: Path) -> None:
    call = {"from": "function_call", "value": '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": "{\\"x\\": 1}"}]'}
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "Let me look."}, call]
    turns += [{"from": "observation", "value": "1"}, {"from": "observation", "value": "2"}, {"from": "gpt", "value": "3"}]
    messages = one(tmp_path, {"conversations": turns}).messages
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert messages[1]["content"] == "Let me look."
    assert [call["function"] for call in messages[1]["tool_calls"]] == [
        {"name": "f", "arguments": {}},
        {"name": "g", "arguments": {"x": 1}},
    ]
    assert [message["name"] for message in messages[2:4]] == ["f", "g"]


def test_messages_in_all_their_spellings(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "developer", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "value": "!"}]},
            {
                "role": "assistant",
                "content": [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "a"}],
                "loss_weight": 0.5,
            },
            {"from": "user", "content": "more"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}, "id": "1"}],
            },
            {"role": "tool", "content": "2", "tool_call_id": "1"},
            {"role": "assistant", "content": "b", "loss": False, "reasoning_content": "so"},
        ]
    }
    messages = one(tmp_path, row).messages
    assert messages == (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q!"},
        {"role": "assistant", "content": "a", "reasoning_content": "hm", "weight": 0.5},
        {"role": "user", "content": "more"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "1", "name": "f"},
        {"role": "assistant", "content": "b", "reasoning_content": "so", "weight": 0.0},
    )
    assert one(tmp_path, row["messages"]).messages == messages


def test_the_recipes_system_prompt_is_for_examples_without_one(tmp_path: Path) -> None:
    assert talk(one(tmp_path, {"messages": [U, A]}, system="x"))[0] == ("system", "x")
    assert talk(one(tmp_path, {"messages": [S, U, A]}, system="x"))[0] == ("system", "s")
    assert talk(one(tmp_path, {"messages": [U, A], "system": "own"}, system="x"))[0] == ("system", "own")


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([U, U, A], "turn 2: two user turns in a row"),
        ([U, A, A], "turn 3: two assistant turns in a row"),
        ([U, A, U], "the last turn is a user turn, it should be an assistant turn"),
        ([U], "the last turn is a user turn, it should be an assistant turn"),
        ([A, U, A], "turn 1: the conversation begins with an assistant turn, it should begin with a user turn"),
        ([S, A], "turn 2: the conversation begins with an assistant turn, it should begin with a user turn"),
        ([U, A, S, U, A], "turn 3: a system turn that is not the first"),
        ([U, {"role": "tool", "content": "x"}, A], "turn 2: a tool result that follows no assistant turn"),
        (
            [U, A, {"role": "tool", "content": "x"}, U, A],
            "turn 4: a user turn, but an assistant turn should follow the tool result",
        ),
        ([U, {"role": "asistant", "content": "x"}], "turn 2: unknown role `asistant`"),
        ([U, {"content": "x"}], "turn 2: missing `role`"),
        ([U, {"role": "assistant"}], "turn 2: missing `content`"),
        ([U, {"role": "assistant", "content": 3}], "turn 2: `content` is a number, it should be text"),
        ([{"role": "user", "content": " "}, A], "turn 1: the user turn is empty"),
        ([U, "hello"], "turn 2 is text, it should be a mapping"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, A],
            "turn 1: a part of type `image_url`; only text is read",
        ),
        ([U, {**A, "weight": -1}], "turn 2: `weight` should be 0, or a number from 0.0001 to 65504"),
        ([U, {**A, "weight": 1e6}], "turn 2: `weight` should be 0, or a number from 0.0001 to 65504"),
        ([U, {**A, "weight": 1e-9}], "turn 2: `weight` should be 0, or a number from 0.0001 to 65504"),
        ([U, {**A, "weight": float("nan")}], "turn 2: `weight` should be 0, or a number from 0.0001 to 65504"),
        ([U, {**A, "tool_calls": [{"function": {}}]}], "turn 2: the tool call has no `name`"),
        (
            [U, {**A, "tool_calls": [{"name": "f", "arguments": "{"}]}],
            "turn 2: the arguments of the tool call is not JSON: Expecting ",
        ),
    ],
)
def test_turns_out_of_order_or_malformed(tmp_path: Path, turns: list[Any], said: str) -> None:
    assert refused(tmp_path, {"messages": turns}).startswith(said)
    assert refused(tmp_path, turns).startswith(said)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "`messages` is empty"),
        ({"messages": {"role": "user"}}, "`messages` is a mapping, it should be a list of turns"),
        ({"messages": "hello"}, "`messages` is not JSON: Expecting value"),
        ({"conversations": None}, "missing `conversations`"),
        ({"conversations": [{"from": "human"}]}, "turn 1: missing `value`"),
        ({"conversations": [{"value": "x"}]}, "turn 1: missing `from`"),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "x"}]},
            "turn 2: the tool call is not JSON: ",
        ),
    ],
)
def test_bad_lists_of_turns(tmp_path: Path, row: Any, said: str) -> None:
    assert refused(tmp_path, row).startswith(said)


def test_hostile_nesting_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    assert refused(tmp_path, {"messages": [U, {**A, "content": deep}]}).startswith("turn 2: a part of type `text`")
    assert "nested more than 100 levels" in refused(tmp_path, {"messages": [U, A], "tools": deep})
    assert "turn 1 is a list" in refused(tmp_path, {"messages": deep})
    with pytest.raises(RowError, match="nested too deeply"):
        structure_of("[" * 200_000, "it")


def test_rows_of_another_kind(tmp_path: Path) -> None:
    path = write(tmp_path, [{"instruction": "q", "output": "a"}, 3, [U, A], "x", None])
    problems = Problems("skip")
    assert len(list(read_examples(Source(path=str(path)), problems, stage="sft"))) == 1
    assert [(problem.origin.line, problem.message) for problem in problems.first] == [
        (2, "the row is a number, it should be a mapping"),
        (3, "the row is a list, it should be a mapping"),
        (4, "the row is text, it should be a mapping"),
        (5, "the row is null, it should be a mapping"),
    ]


def test_a_bad_first_row_does_not_hide_the_format(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"instruction": "q"\n{}\n{"instruction": "q", "output": "a"}\n')
    problems = Problems("skip")
    assert len(list(read_examples(Source(path=str(path)), problems, stage="sft"))) == 1
    assert problems.count == 2


def test_a_format_that_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(write(tmp_path, [{"ask": "q", "answer": "a"}]))
    assert "d.jsonl:1: cannot tell the format of the rows from the keys `ask`, `answer`. Set `format`" in str(caught.value)


def test_documents_are_for_pretraining(tmp_path: Path) -> None:
    path = write(tmp_path, [{"text": "one", "output": "x"}, {"text": "two"}])
    examples = read(path, stage="pt")
    assert [(type(example), example.text) for example in examples if isinstance(example, Document)] == [
        (Document, "one"),
        (Document, "two"),
    ]
    with pytest.raises(UserError, match=r"plain text has no answers to learn in stage `sft`. Use `stage: pt`"):
        read(path)
    alpaca = write(tmp_path, [{"instruction": "q", "output": "a"}], "a.jsonl")
    with pytest.raises(UserError, match=r"holds `alpaca` conversations, but stage `pt` reads text"):
        read(alpaca, stage="pt")
    [document] = read(alpaca, stage="pt", columns={"text": "output"})
    assert isinstance(document, Document)
    assert document.text == "a"


def test_max_examples(tmp_path: Path) -> None:
    assert len(read(write(tmp_path, [[U, A]] * 5), max_examples=3)) == 3


def test_bad_json_is_told_as_a_row(tmp_path: Path) -> None:
    rows = [json.dumps({"instruction": "q", "output": "a"})] * 9
    rows[6] = rows[6].replace(":", "", 1)
    for text in ("\n".join(rows), "[" + ",\n".join(rows) + "]"):
        path = tmp_path / "d.json"
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}:7: broken JSON: Expecting ':' delimiter")


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda text: bool(text.strip()))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.none() | texts)
def test_the_same_talk_in_three_formats_is_the_same_example(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, str]], system: str | None
) -> None:
    folder = tmp_path_factory.getbasetemp()
    alpaca = {"instruction": turns[-1][0], "output": turns[-1][1], "history": turns[:-1], "system": system}
    flat = [(role, text) for pair in turns for role, text in zip(("human", "gpt"), pair, strict=True)]
    sharegpt = {"conversations": [{"from": role, "value": text} for role, text in flat], "system": system}
    names = {"human": "user", "gpt": "assistant"}
    messages: list[Any] = [{"role": names[role], "content": text} for role, text in flat]
    openai = ([{"role": "system", "content": system}] if system else []) + messages
    assert one(folder, alpaca).messages == one(folder, sharegpt).messages == one(folder, openai).messages == tuple(openai)


@pytest.mark.parametrize(
    ("name", "rows", "bad"),
    [
        ("llamafactory/alpaca_en_demo.json", 899, 0),
        ("llamafactory/alpaca_zh_demo.json", 900, 0),
        ("llamafactory/glaive_toolcall_en_demo.json", 240, 0),
        ("llamafactory/glaive_toolcall_zh_demo.json", 240, 0),
        ("llamafactory/reason_tool_use_demo_50.jsonl", 40, 0),
        ("llamafactory/v1_sft_demo.jsonl", 450, 0),
        ("llamafactory/identity.json", 91, 0),
        ("sft/alpaca_data_en_51k.json.gz", 51009, 0),
        ("sft/alpaca_zh_8k.json.gz", 8605, 0),
        ("sft/oasst_sft_zh.json", 539, 0),
        ("sft/lima_200.json", 200, 0),
        ("sft/self_cognition.json", 80, 0),
        ("xtuner/openai_sft.jsonl", 128, 0),
        ("xtuner/mllm_sft_text_example_data.jsonl", 200, 0),
        ("xtuner/qwen35_tokenize_data.jsonl", 17, 5),  # pictures and films
        ("sharegpt/fastchat_dummy_conversation.json", 500, 0),
        ("sharegpt/sharegpt_zh_150.jsonl", 150, 2),  # an empty question; no answer at the end
        ("medical/huatuo_llama_data_2000.json", 2000, 0),
        ("medical/medical_sft_900_sharegpt.jsonl", 900, 0),
        ("colossalchat/test_sft_data.jsonl", 1, 0),
        ("colossalchat/lora_sft_data.jsonl", 10, 0),
        ("formats/swift/alpaca.csv", 3, 0),
        ("formats/swift/chatml.jsonl", 3, 0),
        ("formats/swift/conversations.jsonl", 3, 0),
    ],
)
def test_shared_files(shared: Path, name: str, rows: int, bad: int) -> None:
    problems = Problems("skip")
    examples = list(read_examples(Source(path=str(shared / "data" / name)), problems, stage="sft"))
    assert (len(examples), problems.count) == (rows - bad, bad)


@pytest.mark.parametrize(
    ("name", "documents"),
    [("llamafactory/c4_demo.jsonl", 300), ("llamafactory/wiki_demo.txt", 30), ("pretrain/stories_en.jsonl.gz", 711)],
)
def test_shared_texts(shared: Path, name: str, documents: int) -> None:
    assert len(read(shared / "data" / name, stage="pt")) == documents


def test_shared_csv_with_own_columns(shared: Path) -> None:
    columns = {"instruction": "ask", "output": "answer"}
    for name, rows in (("zh_internal_medicine_3000.csv", 3000), ("zh_internal_medicine_200_gb18030.csv", 200)):
        assert len(read(shared / "data/medical" / name, columns=columns)) == rows
