"""Each kind of problem is found where it is, told with file, line, row and advice, and nothing is found in good rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.chat import resolve
from luthier.data.doctor import KINDS, Examination, Finding, Options, examine
from luthier.data.doctor.structure import kind_of
from luthier.data.tokenizer import load_tokenizer
from luthier.recipe.schema import FormatName, Source
from tests.workspace import TINY

GOOD = {
    "instruction": "How long does it take to rehair a bow?",
    "input": "",
    "output": "About a week, a little more before concerts.",
}


def write(folder: Path, rows: Sequence[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows), "utf-8"
    )
    return path


def found(
    folder: Path, rows: Sequence[Any], options: Options | None = None, format_name: FormatName = "auto", **more: Sequence[Any]
) -> list[Finding]:
    validation = [Source(path=str(write(folder, more["validation"], "validation.jsonl")))] if more else []
    examination = Examination(options)
    findings = list(examination.findings([Source(path=str(write(folder, rows)), format=format_name)], validation))
    assert not examination.unreadable
    return findings


def alpaca(
    question: str = "Which wood is the bridge made of?", answer: str = "Maple, most of the time.", **more: Any
) -> dict[str, Any]:
    return {"instruction": question, "output": answer, **more}


def talk(*turns: str, **more: Any) -> dict[str, Any]:
    """Turns by their first letter: u(ser), a(ssistant), s(ystem), t(ool)."""
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return {"messages": [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns], **more}


def calling(*turns: dict[str, Any], tools: Sequence[str] = ()) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Any E strings left?"}, *turns], "tools": [{"name": name} for name in tools]}


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "stock", "arguments": {"string": "E"}}}]}
RESULT, ANSWER = {"role": "tool", "content": "12"}, {"role": "assistant", "content": "Yes, twelve of them."}

BAD: list[tuple[str, Any, str, str]] = [
    ("broken", '{"instruction": "a', "broken JSON: Unterminated string", ""),
    ("wrong-type", alpaca(answer=5), "`output` is a number, it should be text", "`output`"),  # type: ignore[arg-type]
    ("wrong-type", [1], "the row is a list", ""),
    ("missing", {"instruction": "Which wood?"}, "missing `output`", "`output`"),
    ("empty", alpaca(answer=" "), "the answer is empty", "turn 2"),
    ("empty", alpaca(answer=None), "`output` is null", "`output`"),  # type: ignore[arg-type]
    ("no-question", {"output": "Maple."}, "missing `instruction`", "`instruction`"),
    ("no-question", alpaca(question=" "), "`instruction` is empty", "`instruction`"),
    ("media", alpaca(images=["a.png"]), "has `images`", "`images`"),
    ("dummy", alpaca(answer="xxx"), "dummy text: xxx", "turn 2"),
    ("dummy", alpaca(answer="TODO"), "dummy text: TODO", "turn 2"),
    (
        "dummy",
        alpaca(question="我该叫你什么呢，请告诉我？", answer="我是xxx开发的人工智能助手。"),
        "`xxx` in the place of a word",
        "turn 2",
    ),
    ("placeholder", alpaca(answer="I am {{name}}, made by {{ author }}."), "holds `{{name}}`, `{{ author }}`", "`output`"),
    ("placeholder", alpaca(question="Are you <NAME>?"), "holds `<NAME>`", "`instruction`"),
    ("mojibake", alpaca(answer="In the cafÃ© on the corner, Iâ€™m told."), "was decoded wrongly once", "`output`"),
    ("lost-character", alpaca(answer="In the caf\ufffd on the corner."), "where a character was lost", "`output`"),
    ("lost-character", alpaca(answer="In the caf锟斤拷 on the corner."), "holds 锟斤拷", "`output`"),
    ("control", alpaca(answer="Maple\u200b, most\x07 of the time."), "holds U+200B, U+0007", "`output`"),
    ("special-token", alpaca(answer="Maple.<|im_end|>\n"), "holds `<|im_end|>`", "turn 2"),
    ("language", alpaca(answer="多半是枫木，也有人用别的木头。"), "the question is Latin, the answer Chinese", "turn 2"),
    ("email", alpaca(answer="Write to anna.lindgren@geigenbau.se for that."), "an… (26 characters)", "`output`"),
    (
        "phone",
        alpaca(answer="请拨打电话 13912345678 咨询。", question="请问，你们的电话是多少？"),
        "13… (11 characters)",
        "`output`",
    ),
    ("phone", alpaca(answer="Call +46 8 123 45 67 for that."), "+4… (15 characters)", "`output`"),
    ("secret", alpaca(answer="Use AKIAIOSFODNN7EXAMPLE for the bucket."), "AK… (20 characters)", "`output`"),
    ("secret", alpaca(answer='password = "correct-horse-battery"'), "pa… (", "`output`"),
]


@pytest.mark.parametrize(("kind", "row", "said", "where"), BAD)
def test_each_kind_is_found_in_its_row_alone(tmp_path: Path, kind: str, row: Any, said: str, where: str) -> None:
    [finding] = found(tmp_path, [GOOD, row])
    assert finding.kind.name == kind
    assert said in finding.what
    assert finding.where == where
    assert str(finding).startswith(f"{finding.origin.file}:2 (row 2): {finding.what}")
    assert str(finding).endswith(f"; {KINDS[kind].advice}")


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("role-order", talk("u:Hello there.", "u:Are you open today?", "a:Yes, until six."), "two user turns in a row"),
        (
            "role-order",
            talk("u:Hello there.", "a:Hello!", "s:Be brief.", "u:Open?", "a:Yes."),
            "a system turn that is not the first",
        ),
        ("no-answer", talk("u:Are you open today?"), "the last turn is a user turn"),
        ("no-question", talk("a:We are open until six."), "begins with an assistant turn"),
        ("no-question", talk("u:", "a:We are open until six."), "the user turn is empty"),
        ("empty", talk("u:Are you open today?", "a:"), "the answer is empty"),
        (
            "tool-call",
            talk("u:Any E strings left?", "a:Let me look.", "t:12", "a:Yes, twelve."),
            "a tool result that answers no call",
        ),
        ("tool-call", calling(CALL, {"role": "user", "content": "Well?"}, ANSWER), "1 of 1 tool calls without a result"),
        ("tool-call", calling(CALL, RESULT, RESULT, ANSWER), "a tool result that answers no call"),
        ("tool-call", calling(CALL, RESULT, ANSWER, tools=["price"]), "calls `stock`, which is not among the tools"),
    ],
)
def test_turns_and_tool_calls(tmp_path: Path, kind: str, row: Any, said: str) -> None:
    findings = found(tmp_path, [talk("u:Do you repair cellos?", "a:Gladly."), row], format_name="messages")
    assert [(finding.kind.name, said in finding.what) for finding in findings] == [(kind, True)]


@pytest.mark.parametrize(
    "row",
    [
        calling(CALL, RESULT, ANSWER, tools=["stock"]),
        calling(CALL),
        talk("s: ", "u:Are you open today?", "a:Yes.", tools=" "),
        talk("u:Write `<div>` and `</div>` around it, with <b> and <BR>.", "a:<DIV>text</DIV>"),
        talk("u:Translate into Chinese: The bridge is made of maple.", "a:琴马是用枫木做的，大多数时候如此。"),
        talk("u:家人之间👨‍👩‍👧怎么说？می‌خواهم", "a:一家人👨‍👩‍👧，和和美美，团团圆圆。"),
        talk("u:Où est le café de la gare, s'il vous plaît ?", "a:À côté de l'hôtel « Étoile », près du château."),
        talk(
            "u:How do I reach you?", "a:Write to me@example.com, or call 555-0100; the file is of 2024-11-22, version 1.2.3.4567."
        ),
        talk("u:Wait ...", "a:1000000"),
    ],
)
def test_good_rows_are_clean(tmp_path: Path, row: Any) -> None:
    assert found(tmp_path, [row]) == []


def test_a_row_says_its_own_id(tmp_path: Path) -> None:
    [finding] = found(tmp_path, [GOOD, {"id": "kd-17", **alpaca(answer="")}])
    assert "rows.jsonl:2 (row 2, id kd-17): the answer is empty, in turn 2; " in str(finding)
    assert finding.as_dict()["id"] == "kd-17"


def test_nothing_private_is_printed(tmp_path: Path) -> None:
    secrets = ["AKIAIOSFODNN7EXAMPLE", "anna.lindgren@geigenbau.se", "13912345678"]
    rows = [alpaca(answer=f"cafÃ© {secrets[0]} {secrets[1]} 我 {secrets[2]} xxx 的")]
    told = "\n".join(json.dumps(finding.as_dict()) + str(finding) for finding in found(tmp_path, rows))
    assert all(kind in told for kind in ("secret", "email", "phone", "mojibake"))
    assert not [value for value in secrets if value in told]


def test_the_same_row_and_nearly_the_same(tmp_path: Path) -> None:
    long = "The sound post stands under the foot of the bridge and carries what the strings do to the back of the violin. " * 3
    rows = [alpaca(answer=long), GOOD, alpaca(answer=long), alpaca(answer=long.replace("violin", "viola"))]
    same, near = found(tmp_path, rows)
    assert (same.kind.name, same.origin.line, same.what) == ("duplicate", 3, "is the same as line 1")
    assert (near.kind.name, near.origin.line) == ("near-duplicate", 4)
    assert near.what.startswith("is nearly the same as line 1 (")


def test_another_answer_to_the_same_question_is_no_duplicate(tmp_path: Path) -> None:
    assert found(tmp_path, [alpaca(answer="Maple, with few exceptions."), alpaca(answer="Often it is maple wood.")]) == []


def test_what_is_in_the_validation_data(tmp_path: Path) -> None:
    held_out = [alpaca(), alpaca("How many strings has a cello, by the way?", "Four."), alpaca("Open?", "Yes.")]
    rows = [alpaca(), alpaca("How many strings has a cello, by the way?", "It has four."), alpaca("Open?", "No."), GOOD]
    findings = found(tmp_path, rows, validation=held_out)
    assert [(finding.kind.name, finding.origin.line) for finding in findings] == [("leak", 1), ("leak", 2)]
    assert "is in the validation data too, at " in findings[0].what
    assert findings[1].what.startswith("asks what ")


def test_strangers_among_the_languages(tmp_path: Path) -> None:
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    rows = [alpaca(f"Write {a} {b} times, please.", f"Here you are: {a} {b}, as asked.") for a in numbers for b in numbers]
    stranger = alpaca("Сколько струн у скрипки?", "У скрипки четыре струны.")
    [finding] = found(tmp_path, [*rows, stranger], Options(ignore=frozenset({"near-duplicate"})))
    assert (finding.kind.name, finding.origin.line) == ("language", 101)
    assert finding.what == "is Cyrillic, while 99.0% of the rows are Latin"


def test_tokens_too_many_and_none_to_learn(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(TINY)
    options = Options(tokenizer=tokenizer, template=resolve("chatml", None, {}), max_length=64)
    rows = [
        talk("u:Hello!", "a:Good day."),
        talk("u:Hello?", "a:" + "Good day. " * 60),
        talk("u:Hi " * 90, "a:So many greetings!"),
    ]
    rows.append({"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi.", "weight": 0}]})
    findings = found(tmp_path, rows, options)
    assert [(finding.kind.name, finding.origin.line) for finding in findings] == [
        ("too-long", 2),
        ("too-long", 3),
        ("unsupervised", 3),
        ("unsupervised", 4),
    ]
    assert "more than 64" in findings[0].what


def test_kinds_can_be_left_untold(tmp_path: Path) -> None:
    rows = [GOOD, GOOD, alpaca(answer="")]
    assert [finding.kind.name for finding in found(tmp_path, rows, Options(ignore=frozenset({"duplicate"})))] == ["empty"]


def test_every_row_counts_once_for_each_kind(tmp_path: Path) -> None:
    rows = [alpaca("Who is <NAME>?", "I am {{name}}."), GOOD, alpaca(answer="")]
    examination = examine(write(tmp_path, rows))
    assert {name: (tally.found, tally.rows) for name, tally in examination.tallies.items()} == {
        "placeholder": (2, 1),
        "empty": (1, 1),
    }
    assert (examination.rows, examination.errors, examination.sources[0].bad) == (3, 3, 2)


def test_a_file_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    examination = examine(tmp_path / "absent.json", write(tmp_path, [GOOD]))
    assert ["absent.json: no such file" in str(error) for error in examination.unreadable] == [True]
    assert examination.rows == 1


def test_a_break_in_an_array_says_that_the_rest_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([GOOD, GOOD], indent=1)[:-20], "utf-8")
    examination = Examination()
    findings = list(examination.findings([Source(path=str(path))]))
    assert findings[-1].kind.name == "broken"
    assert "nothing after it can be read" in findings[-1].what


def test_preferences(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "Which wood is it?"}]
    findings = found(tmp_path, [{"messages": prompt, "chosen": ANSWER, "rejected": {"role": "assistant", "content": "xxx"}}])
    assert [(finding.kind.name, finding.where) for finding in findings] == [("dummy", "rejected turn 2")]


def test_the_real_thing(shared: Path) -> None:
    """What is known to be in these files is found, and little else."""
    identity = examine(shared / "data/llamafactory/identity.json")
    assert identity.tallies["placeholder"].rows == 85
    assert set(identity.tallies) <= {"placeholder", "near-duplicate"}
    english = examine(shared / "data/sft/alpaca_data_en_1k.json")
    assert {name: tally.rows for name, tally in english.tallies.items()} == {"empty": 1}


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("broken JSON: Expecting value (column 1)", "broken"),
        ("broken csv: ',' expected after '\"'", "broken"),
        ("number of fields is 3, but the header names 2", "broken"),
        ("is not valid UTF-8 text (byte 0xff)", "broken"),
        ("is nested too deeply", "broken"),
        ("`tools` is nested more than 100 levels deep", "wrong-type"),
        ("`history` is not JSON: Expecting value", "wrong-type"),
        ("`label` should be true or false", "wrong-type"),
        ("turn 2: unknown role `narrator`", "role-order"),
        ("`messages` is empty", "empty"),
        ("the last turn is a tool turn, it should be an assistant turn", "no-answer"),
        ("turn 3: the tool call has no `name`", "tool-call"),
        ("turn 1: a part of type `image_url`; only text is read", "media"),
        ("the better and the worse answer are the same", "equal-pair"),
        ("`chosen` and `rejected` do not begin with the same question", "format"),
    ],
)
def test_what_readers_and_formats_say_is_sorted_into_kinds(message: str, kind: str) -> None:
    assert kind_of(message) == kind
