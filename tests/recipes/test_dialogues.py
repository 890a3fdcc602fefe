"""The dialogues of the embedded model: true, reproducible, and apart from what they are examined by."""

from __future__ import annotations

import re
from collections import Counter

import pytest


@pytest.fixture(scope="module")
def dialogues(script):
    return script("dialogues")


@pytest.fixture(scope="module")
def computed(script):
    return script("computed")


@pytest.fixture(scope="module")
def taught(dialogues):
    return dialogues.training(seed=1)


@pytest.fixture(scope="module")
def examined(dialogues):
    return dialogues.held_out(seed=1, per_kind=60)


def test_rich_bilingual_and_distinct(dialogues, taught):
    rows = [str(dialogues.row(dialogue)) for dialogue in taught]
    assert len(rows) == len(set(rows)) > 30_000
    languages = Counter(dialogue.language for dialogue in taught)
    assert min(languages.values()) > 0.35 * len(rows)
    assert sum(len(dialogue.turns) > 1 for dialogue in taught) > 0.1 * len(rows)


def test_same_seed_same_dialogues(dialogues, taught):
    assert dialogues.training(seed=1) == taught
    assert dialogues.training(seed=2) != taught


def test_every_answer_passes_its_own_rule(taught, examined):
    for dialogue in (*taught, *examined):
        last = dialogue.turns[-1]
        assert any(expected in last.answer for expected in last.expect), last


def test_sums_are_right(taught):
    turns = [turn for dialogue in taught for turn in dialogue.turns if " = " in turn.answer]
    assert len(turns) > 10_000
    for turn in turns:
        a, b, total = map(int, re.fullmatch(r"(\d+) \+ (\d+) = (\d+)", turn.answer).groups())
        assert a + b == total


def test_held_out_sums_are_never_taught(taught, examined):
    def pairs(dialogues):
        answers = (turn.answer for dialogue in dialogues if dialogue.kind == "sum" for turn in dialogue.turns[:1])
        return {frozenset(map(int, re.findall(r"\d+", answer)[:2])) for answer in answers}

    asked = pairs(examined)
    assert len(asked) > 30
    first_sums = pairs(taught)
    assert not asked & first_sums


def test_held_out_questions_are_never_taught(taught, examined):
    questions = {tuple(turn.ask for turn in dialogue.turns) for dialogue in taught}
    assert not questions & {tuple(turn.ask for turn in dialogue.turns) for dialogue in examined}
    assert len({dialogue.kind for dialogue in examined}) > 30


def test_questions_of_the_demo_are_taught(taught):
    answers = {dialogue.turns[0].ask: dialogue.turns[0].answer for dialogue in taught if not dialogue.system}
    assert "琴匠的小模型" in answers["你是谁？"]
    assert "Luthier's tiny model" in answers["Who are you?"]


def test_a_question_asks_for_the_last_answer(dialogues, examined):
    for dialogue in examined:
        question = dialogues.question(dialogue)
        assert question["messages"][-1]["role"] == "user"
        assert question["answer"] == dialogue.turns[-1].answer


@pytest.mark.parametrize(
    ("number", "english", "chinese"),
    [(7, "seven", "七"), (10, "ten", "十"), (15, "fifteen", "十五"), (40, "forty", "四十"), (99, "ninety-nine", "九十九")],
)
def test_number_words(computed, number, english, chinese):
    assert computed.words_en(number) == english
    assert computed.words_zh(number) == chinese


def test_calendar_goes_around(computed):
    days = computed.cycle(computed.DAYS, computed.DAYS_ZH)
    assert days[6]["next"] == "Monday"
    assert days[0]["previous_zh"] == "星期日"
