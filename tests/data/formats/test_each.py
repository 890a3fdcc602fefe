"""Each format beside the four old ones: what its rows become, what is said of bad ones, and that it is recognised."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.data.examples import Conversation, Document, Example, Feedback, Message, Origin, Preference, Prompt
from luthier.data.formats import FORMATS
from luthier.data.problems import RowError
from luthier.data.read_examples import choose_format
from luthier.errors import UserError
from luthier.recipe.schema import FormatName, Source

HERE = Origin("here.jsonl", 1, 0)


def detected(row: Any, stage: str | None = None, **columns: str) -> str:
    source = Source(path="here.jsonl", columns=columns)
    chosen, rows = choose_format(source, iter([(HERE, row)]), stage)
    assert list(rows) == [(HERE, row)]
    return chosen.NAME


def parsed(name: str, row: Any, **columns: str) -> list[Example]:
    assert FORMATS[name].matches(row) or columns
    return list(FORMATS[name].parse(row, HERE, columns))


def talk(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


QA = [("user", "q"), ("assistant", "a")]
LONG = [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("messages", {"messages": [{"from": "user", "content": "q"}, {"from": "assistant", "content": "a"}]}, QA),
        ("sharegpt", {"conversations": ["q", "a"], "source": "lima"}, QA),
        ("xtuner", {"conversation": [{"system": "s", "input": "q1", "output": "a1"}, {"input": "q", "output": "a"}]}, LONG),
        ("xtuner", {"conversation": [{"system": "s", "history": [["q1", "a1"]], "input": "q", "output": "a"}]}, LONG),
        ("xtuner", {"system": "s", "conversation": [{"human": "q1", "assistant": "a1"}, {"human": "q", "assistant": "a"}]}, LONG),
        ("prompt_completion", {"prompt": "q", "completion": "a"}, QA),
        ("prompt_completion", {"prompt": [{"role": "user", "content": "q"}], "completion": {"role": "assistant", "content": "a"}}, QA),
        ("qa", {"question": "q", "answer": "a"}, QA),
        ("qa", {"query": "q", "response": "a", "history": [["q1", "a1"]], "system": "s"}, LONG),
        ("qa", {"problem": "q", "solution": "a"}, QA),
        ("qa", {"instruction": "q", "response": "a"}, QA),
        ("qa", {"kind": "NLI", "input": "q", "target": "a"}, QA),
        ("dolly", {"instruction": "q", "context": "", "response": "a", "category": "open_qa"}, QA),
        ("dolly", {"instruction": "q", "context": "c", "response": "a"}, [("user", "q\nc"), ("assistant", "a")]),
        ("samsum", {"dialogue": "A: hi", "summary": "a"}, [("user", "Summarize this dialogue:\n\nA: hi"), ("assistant", "a")]),
        ("guanaco", {"text": "### Human: q1### Assistant: a1### Human: q### Assistant: a"}, LONG[1:]),
        (
            "guanaco",
            {"text": "s\n\n### Instruction:\nq\n\n### Input:\ni\n\n### Response:\na"},
            [("system", "s"), ("user", "q\ni"), ("assistant", "a")],
        ),
        ("human_text", {"text": "<s>Human: q1\n</s><s>Assistant: a1\n</s><s>Human: q\n</s><s>Assistant: a\n</s>"}, LONG[1:]),
        ("llama2_text", {"text": "<s>[INST] q [/INST] a </s>"}, QA),
        ("llama2_text", {"text": "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nq1 [/INST] a1 </s><s>[INST] q [/INST] a </s>"}, LONG),
        ("seed_tasks", {"instruction": "q", "instances": [{"input": "", "output": "a"}]}, QA),
        ("oasst", {"prompt": {"role": "prompter", "text": "q", "replies": [{"role": "assistant", "text": "a", "replies": []}]}}, QA),
    ],
)  # fmt: skip
def test_conversations(name: str, row: Any, said: list[tuple[str, str]]) -> None:
    [example] = parsed(name, row)
    assert isinstance(example, Conversation)
    assert talk(example.messages) == said
    assert detected(row) == detected(row, "sft") == name


HH = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
ASK, GOOD, BAD = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b")))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("hh_rlhf", HH),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}),
        ("preference", {"question": "q", "response_j": "a", "response_k": "b", "qid": 3}),
        ("preference", {"prompt": "q", "chosen": [ASK, GOOD], "rejected": [ASK, BAD], "score_chosen": 4.0}),
        ("preference", {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}),
        ("preference", {"context": [{"from": "user", "content": "q"}], "chosen": [GOOD], "rejected": [BAD]}),
        ("openai_dpo", {"input": {"messages": [ASK]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}),
        ("messages", {"messages": [ASK], "chosen": GOOD, "rejected": BAD}),
        ("messages", {"chosen_messages": [ASK, GOOD], "rejected_messages": [ASK, BAD]}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"}),
        ("alpaca", {"instruction": "q", "input": "", "output": ["a", "b"]}),
        ("alpaca", {"instruction": "q", "chosen": "a", "rejected": "b"}),
    ],
)  # fmt: skip
def test_preference_pairs(name: str, row: Any) -> None:
    [pair] = parsed(name, row)
    assert isinstance(pair, Preference)
    assert (talk(pair.prompt), talk(pair.chosen), talk(pair.rejected)) == ([QA[0]], [QA[1]], [("assistant", "b")])
    assert detected(row) == name


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("kto", {"prompt": "q", "completion": "a", "label": True}),
        ("kto", {"prompt": [{"from": "user", "content": "q"}], "completion": {"from": "assistant", "content": "a"}, "label": True}),
        ("messages", {"messages": [ASK, GOOD], "label": True}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "kto_tag": True}),
        ("alpaca", {"instruction": "q", "output": "a", "kto_tag": True}),
    ],
)  # fmt: skip
def test_feedback(name: str, row: Any) -> None:
    [example] = parsed(name, row)
    assert isinstance(example, Feedback)
    assert (talk(example.messages), example.label) == (QA, True)
    assert detected(row) == name


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        ({"prompt": "q", "reference": "7"}, "7"),
        ({"question": "q", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}, "7"),
        ({"problem": "q", "solution": 7}, "7"),
        ({"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": "7", "style": "rule"}}, "7"),
        ({"instruction": "q"}, None),
        ({"question": [[{"role": "user", "content": "q"}]], "function": [{"name": "f", "parameters": {}}]}, None),
    ],
)
def test_prompts(row: Any, reference: str | None) -> None:
    [example] = parsed("prompt", row)
    assert isinstance(example, Prompt)
    assert (talk(example.messages), example.reference) == ([QA[0]], reference)
    assert (example.tools is not None) == ("function" in row)


def test_a_question_with_an_answer_is_read_as_the_stage_wants_it() -> None:
    row = {"question": "q", "answer": "a #### 7"}
    assert detected(row, "sft") == detected(row) == "qa"
    assert detected({"text": "### Human: q### Assistant: a"}, "pt") == "text"
    assert detected({"text": "a story"}, "sft") == "text"
    assert detected({"messages": [{"role": "pretrain", "content": "x"}], "text": "y"}, "pt") == "text"


def test_documents_among_formats_of_conversations() -> None:
    assert parsed("messages", {"messages": [{"role": "pretrain", "content": "x"}]}) == [Document("x", HERE)]
    assert parsed("xtuner", {"conversation": [{"system": "", "input": "", "output": "x"}]}) == [Document("x", HERE)]


def test_ranked_answers_are_paired_with_the_best() -> None:
    pairs = parsed("alpaca", {"instruction": "q", "output": ["a", "b", "a", "c"]})
    assert [(pair.chosen[0]["content"], pair.rejected[0]["content"]) for pair in pairs if isinstance(pair, Preference)] == [
        ("a", "b"),
        ("a", "c"),
    ]


def test_grammar_has_an_example_for_each_correction() -> None:
    examples = parsed("grammar", {"sentence": "He go.", "corrections": ["He goes.", " ", "He went."]})
    assert [talk(example.messages)[1][1] for example in examples if isinstance(example, Conversation)] == ["He goes.", "He went."]
    [named] = FORMATS["grammar"].parse({"input": "He go.", "target": "He goes."}, HERE, {})
    assert named == examples[0]
    assert detected({"input": "He go.", "target": "He goes."}) == "qa"


def test_moss_thoughts_commands_and_results() -> None:
    turn = {
        "Human": "<|Human|>: q<eoh>\n",
        "Inner Thoughts": "<|Inner Thoughts|>: hm<eot>\n",
        "Commands": '<|Commands|>: Search("a, b"), Calculate("1+(2*3)")<eoc>\n',
        "Tool Responses": "<|Results|>:\n7\n<eor>\n",
        "MOSS": "<|MOSS|>: a<eom>\n",
    }
    nothing = {**turn, "Commands": "<|Commands|>: None<eoc>\n", "Inner Thoughts": "<|Inner Thoughts|>: None<eot>"}
    [example] = parsed("moss", {"meta_instruction": "s\n", "chat": {"turn_1": turn, "turn_2": nothing}})
    assert isinstance(example, Conversation)
    assert talk(example.messages) == [("system", "s"), QA[0], ("assistant", ""), ("tool", "7"), QA[1], *QA]
    called = example.messages[2]
    assert called["reasoning_content"] == "hm"
    assert [call["function"] for call in called["tool_calls"]] == [
        {"name": "Search", "arguments": {"input": "a, b"}},
        {"name": "Calculate", "arguments": {"input": "1+(2*3)"}},
    ]
    assert "reasoning_content" not in example.messages[-1]


def tree(text: str, *replies: Any, role: str = "assistant", **more: Any) -> dict[str, Any]:
    return {"text": text, "role": role, "replies": list(replies), **more}


def test_a_tree_gives_its_best_path_and_a_pair_for_each_ranked_question() -> None:
    again = tree("q2", tree("b", rank=1), tree("a", rank=0), tree("c", rank=2), role="prompter")
    row = {
        "prompt": tree("q", tree("no", rank=1), tree("gone", rank=0, deleted=True), tree("yes", again, rank=0), role="prompter")
    }
    [example] = parsed("oasst", row)
    assert isinstance(example, Conversation)
    assert talk(example.messages) == [("user", "q"), ("assistant", "yes"), ("user", "q2"), ("assistant", "a")]
    pairs = [pair for pair in parsed("oasst_pairs", row) if isinstance(pair, Preference)]
    assert [(len(pair.prompt), pair.chosen[0]["content"], pair.rejected[0]["content"]) for pair in pairs] == [
        (1, "yes", "no"),
        (3, "a", "c"),
    ]


def test_roles_of_ones_own() -> None:
    columns = {"role": "wer", "content": "was", "role.user": "Kunde", "role.assistant": "Laden"}
    row = {"messages": [{"wer": "Kunde", "was": "q"}, {"wer": "Laden", "was": "a"}]}
    [example] = FORMATS["messages"].parse(row, HERE, columns)
    assert isinstance(example, Conversation)
    assert talk(example.messages) == QA


def test_columns_choose_among_the_formats_that_have_them() -> None:
    row = {"messages": "3 new", "ask": "q", "reply": "a"}
    assert detected(row, question="ask", answer="reply") == "qa"
    assert detected(row, instruction="ask", output="reply") == "alpaca"
    with pytest.raises(UserError, match=r"no format has `questoin`\. Did you mean `question`"):
        detected(row, questoin="ask")
    with pytest.raises(UserError, match="no format has all of them"):
        detected(row, question="ask", output="reply")


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("messages", {"messages": [{"role": "pretrain", "content": "x"}, ASK]}, "`pretrain` turns hold text, and no other"),
        ("messages", {"messages": [ASK, GOOD], "chosen": "a", "rejected": "b"}, "the last turn is an assistant turn"),
        ("xtuner", {"conversation": [{"input": "q"}]}, "round 1: missing `output`"),
        ("xtuner", {"conversation": [{"input": "q", "output": "a"}, {"system": "s", "input": "q", "output": "a"}]}, "round 2: a system"),
        ("moss", {"chat": {"turn_1": {"Human": "q", "Commands": "go", "MOSS": "a"}}}, "turn_1: `Commands` is not made of calls"),
        ("oasst", {"prompt": {"role": "prompter", "text": "q", "replies": []}}, "the tree has no answer"),
        ("oasst_pairs", {"prompt": {"role": "prompter", "text": "q", "replies": []}}, "the tree has no question with two ranked"),
        ("seed_tasks", {"instruction": "q", "instances": []}, "`instances` is a list, it should be a list of instances"),
        ("openai_dpo", {"input": [], "preferred_output": []}, "`input` is a list, it should hold `messages`"),
        ("openai_dpo", {"input": {"messages": [ASK]}, "preferred_output": [GOOD]}, "missing `non_preferred_output`"),
        ("hh_rlhf", {**HH, "rejected": "\n\nHuman: other\n\nAssistant: b"}, "do not begin with the same question"),
        ("hh_rlhf", {"chosen": "no mark", "rejected": "no mark"}, "the last turn is a system turn"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": "a"}, "the better and the worse answer are the same"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": ""}, "`rejected`: `rejected` is empty"),
        ("preference", {"chosen": "a", "rejected": "b"}, "missing `prompt`"),
        ("kto", {"prompt": "q", "completion": "a", "label": "maybe"}, "`label` should be true or false"),
        ("kto", {"prompt": "q", "completion": 3, "label": True}, "`completion` is a number, it should be text or messages"),
        ("prompt_completion", {"prompt": " ", "completion": "a"}, "`prompt` is empty"),
        ("qa", {"question": "", "answer": "a"}, "`question` is empty"),
        ("dolly", {"instruction": "q", "context": 3, "response": "a"}, "`context` is a number, it should be text"),
        ("samsum", {"dialogue": "", "summary": "a"}, "`dialogue` is empty"),
        ("grammar", {"sentence": "x", "corrections": []}, "`corrections` is empty"),
        ("guanaco", {"text": "### Human: q### Assistant: a### Human: q"}, "the last turn is a user turn"),
        ("llama2_text", {"text": "[INST] q [/INST"}, "`text` is not made of `[INST] question [/INST] answer`"),
        ("prompt", {"question": [[ASK], [ASK]]}, "`question` holds 2 rounds; a prompt is one"),
        ("prompt", {"prompt": [ASK, GOOD]}, "the last turn is an assistant turn, it should be a user turn"),
        ("prompt", {"prompt": "q", "reference": ["7"]}, "the reference answer is a list"),
    ],
)  # fmt: skip
def test_bad_rows(name: str, row: Any, said: str) -> None:
    with pytest.raises(RowError) as caught:
        FORMATS[name].parse(row, HERE, {})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_that_were_named_may_be_numbers_and_those_that_were_not_are_left_alone() -> None:
    [example] = FORMATS["alpaca"].parse({"instruction": "q", "output": "a", "liked": "0"}, HERE, {"label": "liked"})
    assert isinstance(example, Feedback)
    assert not example.label
    for row, columns in (({"label": 3}, {}), ({"label": True}, {"label": ""})):
        [example] = FORMATS["alpaca"].parse({"instruction": "q", "output": "a", **row}, HERE, columns)
        assert isinstance(example, Conversation)


def test_the_recipe_knows_every_format() -> None:
    assert FormatName.__args__ == ("auto", *FORMATS)
    for name, each in FORMATS.items():
        assert name == each.NAME
        assert each.ABOUT
        assert each.MAKES
        assert len(set(each.COLUMNS)) == len(each.COLUMNS)
