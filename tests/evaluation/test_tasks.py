"""Published files are read as they are, answers are taken out as they should be, and mistakes are one line."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.evaluation.bbh import BBH, read, solved_in
from luthier.evaluation.choice import Choice, body, put
from luthier.evaluation.general import PARTS, PROSE, Forgetting, rows
from luthier.evaluation.generate import Generate
from luthier.evaluation.gsm8k import GSM8K
from luthier.evaluation.perplexity import Perplexity
from luthier.evaluation.published import Files, Question, rows_in, subjects_of
from luthier.evaluation.tasks import build, settings_of
from luthier.generation.bulk import Written
from luthier.recipe.sections.tasks import BBHTask, CEvalTask, ForgettingTask, GenerateTask, GSM8KTask, PerplexityTask
from tests.evaluation.examinees import silent, tiny

QUESTION = Question("What is 1+1?", ("1", "2", "3", "4"), 1, "x:1", "sums")


def written(rows, head=None):
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows] if head else rows)
    return text.getvalue()


@pytest.fixture
def exam(tmp_path: Path) -> Path:
    """An examination of two subjects in a zip file, as C-Eval is published."""
    head = ["id", "question", "A", "B", "C", "D", "answer"]
    with zipfile.ZipFile(tmp_path / "exam.zip", "w") as file:
        for subject in ("art", "law"):
            for split, count in (("dev", 5), ("val", 3)):
                lines = [[n, f"{subject} {split} {n}?", "a", "b", "c", "d", "ABCD"[n % 4]] for n in range(count)]
                file.writestr(f"{split}/{subject}_{split}.csv", written(lines, head))
            file.writestr(f"test/{subject}_test.csv", written([[0, "?", "a", "b", "c", "d"]], head[:-1]))
    (tmp_path / "mapping.json").write_text(json.dumps({"law": {"name": "法学", "category": "x"}}), "utf-8")
    return tmp_path / "exam.zip"


def test_published_examinations_are_whole(shared):
    data = shared / "data/eval"
    mmlu = subjects_of(Files(str(data / "mmlu/mmlu.zip")), "test", ())
    assert (len(mmlu), sum(map(len, mmlu.values()))) == (57, 14042)
    assert mmlu["anatomy"][0].choices[mmlu["anatomy"][0].answer]
    ceval = subjects_of(Files(str(data / "ceval/ceval.zip")), "val", ())
    assert (len(ceval), sum(map(len, ceval.values()))) == (52, 1346)
    cmmlu = subjects_of(Files(str(data / "cmmlu/cmmlu.zip")), "test", ())
    assert (len(cmmlu), sum(map(len, cmmlu.values()))) == (67, 11582)
    questions, before = read(BBHTask(path=str(data / "bbh.zip")))
    assert len({each.subject for each in questions}) == 22
    closed = {each.subject for each in questions if each.choices}
    assert {each.subject for each in questions} - closed == {"dyck_languages", "multistep_arithmetic_two", "word_sorting"}
    assert all(len(before[subject]) == 4 for subject in closed), {name: len(shown) for name, shown in before.items()}
    assert "step by step" not in "".join(text for shown in before.values() for text in shown)


def test_prompts_are_those_of_their_languages(exam):
    settings = CEvalTask(path=str(exam), shots=1)
    shots, asked = Choice(settings)._of_subjects(settings)
    assert (shots, len(asked)) == (1, 6)
    law = next(each for each in asked if each.subject == "law")
    assert law.context == (
        "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n"
        "law dev 0?\nA. a\nB. b\nC. c\nD. d\n答案： A\n\nlaw val 0?\nA. a\nB. b\nC. c\nD. d\n答案："
    )
    english = Choice(settings.model_copy(update={"language": "en"}))
    assert "about art.\n\nart dev" in english._of_subjects(english.settings)[1][0].context
    assert put(QUESTION, [], "texts", "en").context == "Question: What is 1+1?\nAnswer:"
    assert body(QUESTION, "texts", "zh") == "题目：What is 1+1?\n答案："


@pytest.mark.parametrize(
    ("row", "text", "choices", "answer"),
    [
        ({"question": "q", "choices": ["x", "y"], "answer": 1}, "q", ("x", "y"), 1),
        ({"question": "q", "choices": ["x", "y"], "answer": "x"}, "q", ("x", "y"), 0),
        ({"question": "q", "choices": ["x", "y"], "answer": "B"}, "q", ("x", "y"), 1),
        (
            {"question": {"stem": "q", "choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}]}, "answerKey": "2"},
            "q",
            ("x", "y"),
            1,
        ),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"}, "q", ("x", "y"), 0),
        ({"goal": "q", "sol1": "x", "sol2": "y", "label": 0}, "q", ("x", "y"), 0),
        ({"query": "Question: q\n", "choices": ["x", "y"], "gold": 1}, "q", ("x", "y"), 1),
    ],
)
def test_rows_of_every_kind(row, text, choices, answer, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", "utf-8")
    (found,) = rows_in(str(file))
    assert (found.text, found.choices, found.answer, found.open) == (text, choices, answer, False)


def test_labels_beside_and_a_beginning_that_choices_go_on_from(tmp_path):
    (tmp_path / "valid.jsonl").write_text('{"goal": "g", "sol1": "x", "sol2": "y"}\n', "utf-8")
    (tmp_path / "valid-labels.lst").write_text("1\n", "utf-8")
    assert rows_in(str(tmp_path))[0].answer == 1
    (tmp_path / "copa.jsonl").write_text('{"query": "It rained, so", "choices": ["a.", "b."], "gold": 0}\n', "utf-8")
    assert body(rows_in(str(tmp_path / "copa.jsonl"))[0], "texts", "en") == "It rained, so"


def test_a_subject_has_its_own_line(exam):
    outcome = Choice(CEvalTask(path=str(exam), shots=0)).examine(tiny(), silent)
    accuracy, macro = outcome.measures
    assert set(accuracy.groups) == {"art", "law"}
    assert accuracy.total == pytest.approx(macro.total)
    assert len(outcome.items) == 6


def test_the_answer_of_a_sum_is_taken_out(tmp_path, monkeypatch):
    (tmp_path / "test.jsonl").write_text(
        "".join(json.dumps({"question": f"q{n}", "answer": f"… #### {n}"}) + "\n" for n in (18, 1000, 7)), "utf-8"
    )
    (tmp_path / "train.jsonl").write_text(json.dumps({"question": "t", "answer": "a #### 1"}) + "\n", "utf-8")
    said = iter(["so 18 dollars", "5 …\n#### 1,000.00 dollars", "I do not know"])
    asked = []

    def answers(self, prompts, settings, done=None):
        asked.extend(self.chat.tokenizer.decode(prompt) for prompt in prompts)
        return [Written([], [], next(said), True) for _ in prompts], 0

    monkeypatch.setattr("luthier.evaluation.examinee.Examinee.answers", answers)
    outcome = GSM8K(GSM8KTask(path=str(tmp_path), shots=1)).examine(tiny(), silent)
    assert [item["right"] for item in outcome.items] == [True, True, False]
    assert [measure.total for measure in outcome.measures] == pytest.approx([2 / 3, 2 / 3])
    assert asked[0] == "Question: t\nAnswer: a #### 1\n\nQuestion: q18\nAnswer:"


def test_answers_are_written_and_compared(tmp_path):
    file = tmp_path / "rows.jsonl"
    talk = [{"role": "user", "content": "What colour is the sky?"}, {"role": "assistant", "content": "The sky is blue."}]
    file.write_text(json.dumps({"messages": talk}) + "\n", "utf-8")
    settings = GenerateTask(path=str(file), metrics=["exact_match", "f1"], pattern="blue", max_new_tokens=24)
    outcome = Generate(settings).examine(tiny(), silent)
    assert {measure.name: measure.total for measure in outcome.measures} == {"exact_match": 1, "f1": 1, "pattern": 1}
    assert outcome.items[0]["question"] == "What colour is the sky?"
    answers = Perplexity(PerplexityTask(path=str(file))).examine(tiny(), silent)
    assert answers.measures[0].total < 1.1
    assert answers.items[0]["tokens"] < 10


def test_bbh_is_chosen_or_written(tmp_path):
    (tmp_path / "navigate.json").write_text(
        json.dumps({"examples": [{"input": "Go?\nOptions:\n- Yes\n- No", "target": "No"}]}), "utf-8"
    )
    many = [{"input": f"{n}+1 =", "target": str(n + 1)} for n in range(12)]
    (tmp_path / "sums.json").write_text(json.dumps({"examples": many}), "utf-8")
    outcome = BBH(BBHTask(path=str(tmp_path), limit=2)).examine(tiny(), silent)
    assert [("logprobs" in item) for item in outcome.items] == [True, False, False]
    assert "2 of 3 answers were written" in outcome.notes[0]
    shown = solved_in(
        "canary\n-----\nWhat it is.\n\nQ: a\nb\nA: Let's think. So the answer is (B).\n\nQ: c\nA: Hm.\nSo the answer is no."
    )
    assert shown == ["What it is.\n\n", "Q: a\nb\nA: (B)\n\n", "Q: c\nA: no\n\n"]


def test_the_general_set_is_there_and_says_where_it_is_from():
    outcome = Forgetting(ForgettingTask(limit=2)).examine(tiny(), silent)
    assert [measure.name for measure in outcome.measures] == [*PARTS, *PROSE]
    assert [len(rows(part)) for part in ("knowledge", "basics", *PROSE)] == [113, 120, 24, 24]
    for row in rows("basics"):
        assert len(set(row["choices"])) == 4


def test_tasks_in_short_in_full_and_in_a_file(tmp_path):
    (tmp_path / "tasks.yaml").write_text("- mmlu:data/mmlu,shots=0\n- {type: perplexity, path: text.txt, name: own}\n", "utf-8")
    first, second, third = settings_of([str(tmp_path / "tasks.yaml"), "lm_eval:arc_easy,shots=3"], limit=7)
    assert (first.path, first.shots, first.limit) == (str(tmp_path / "data/mmlu"), 0, 7)
    assert (second.path, second.title()) == (str(tmp_path / "text.txt"), "own")
    assert (third.task, third.shots, third.title()) == ("arc_easy", 3, "arc_easy")
    (one,) = settings_of([r"generate:a.jsonl,metrics=[bleu,f1],pattern=^a,b$,limit=2"], limit=9)
    assert (one.metrics, one.pattern, one.limit) == (("bleu", "f1"), "^a,b$", 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mmul:x", r"there is no task `mmul`. Did you mean `mmlu`\?"),
        ("mmlu:x,shot=1", r"has no `shot`. Did you mean `shots`\?"),
        ("mmlu", r"`path` is missing"),
        ("mmlu:x,shots=many", r"mmlu: shots: "),
        ("none.yaml", r"no such file"),
    ],
)
def test_mistakes_in_tasks(text, said):
    with pytest.raises(UserError, match=said):
        settings_of([text])


def test_mistakes_in_data(exam, tmp_path):
    with pytest.raises(UserError, match=r"no `dev/SUBJECT.csv`|no such folder"):
        subjects_of(Files(str(tmp_path)), "dev", ())
    with pytest.raises(UserError, match=r"answers are not public.*val"):
        subjects_of(Files(str(exam)), "test", ())
    with pytest.raises(UserError, match=r"no subject `lww`. Did you mean `law`"):
        subjects_of(Files(str(exam)), "val", ("lww",))
    with pytest.raises(UserError, match="no such folder or zip"):
        Files(str(tmp_path / "nothing"))
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "choices": ["x"], "answer": "Z"}\n', "utf-8")
    with pytest.raises(UserError, match=r"rows.jsonl:1: the answer `Z` is none of the 1 choices"):
        rows_in(str(tmp_path / "rows.jsonl"))


def test_a_missing_harness_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"need the package lm_eval.*luthier\[lm_eval\]"):
        build(settings_of(["lm_eval:arc_easy"])[0])
