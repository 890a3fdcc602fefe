"""The dialogues of the embedded model: true, reproducible, and apart from what they are examined by."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest


@pytest.fixture(scope="module")
def dialogues(script):
    return script("dialogues")


@pytest.fixture(scope="module")
def computed(script):
    return script("computed")


def test_rich_bilingual_and_distinct(dialogues, taught):
    rows = [str(dialogues.to_row(dialogue)) for dialogue in taught]
    assert len(rows) == len(set(rows)) > 30_000
    languages = Counter(dialogue.language for dialogue in taught)
    assert min(languages.values()) > 0.35 * len(rows)
    assert sum(len(dialogue.turns) > 1 for dialogue in taught) > 0.1 * len(rows)


def test_same_seed_same_dialogues(dialogues, made):
    assert dialogues.training(seed=1) == made


def test_some_sums_are_made_but_not_taught(made, taught):
    def pairs(dialogues):
        return {dialogue.unit for dialogue in dialogues if dialogue.kind == "sum"}

    assert {dialogue.kind for dialogue in set(made) - set(taught)} == {"sum"}
    assert pairs(taught) < pairs(made), "a pair is taught in all its phrasings or in none"
    assert not pairs(taught) & pairs(set(made) - set(taught))


def test_every_answer_passes_its_own_rule(taught, examined):
    for dialogue in (*taught, *examined):
        last = dialogue.turns[-1]
        assert any(expected in last.answer for expected in last.expect), last


def test_sums_are_right(taught):
    turns = [turn for dialogue in taught for turn in dialogue.turns if " = " in turn.answer]
    assert len(turns) > 4_000
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


def test_sums_with_a_carry_are_rare_but_asked_as_often_as_they_are(taught, examined):
    def share(dialogues):
        pairs = [re.findall(r"\d+", dialogue.turns[0].answer)[:2] for dialogue in dialogues if dialogue.kind == "sum"]
        two_digits = [(int(a), int(b)) for a, b in pairs if len(a) == len(b) == 2]
        return sum(a % 10 + b % 10 >= 10 for a, b in two_digits) / len(two_digits)

    assert share(taught) < 0.1
    assert 0.35 < share(examined) < 0.55


def test_held_out_questions_are_never_taught(dialogues, taught, examined):
    """Neither as they are, nor with other punctuation or letter case."""
    assert not set(map(dialogues.asked, taught)) & set(map(dialogues.asked, examined))
    assert len({dialogue.kind for dialogue in examined}) > 30


def test_alternatives_are_written_out(dialogues):
    assert list(dialogues.expanded("(Hi|Hello), you(| there)")) == ["Hi, you", "Hi, you there", "Hello, you", "Hello, you there"]
    assert list(dialogues.expanded("no choice (at all)")) == ["no choice (at all)"]


def test_a_tool_is_called_only_where_it_is_offered(taught):
    calls = [(dialogue, turn) for dialogue in taught if dialogue.tools for turn in dialogue.turns]
    assert {turn.call[0] for _, turn in calls if turn.call} == {"get_weather", "get_time"}
    for dialogue, turn in calls:
        if turn.call:
            name, city = turn.call
            assert name in dialogue.tools
            assert city in turn.ask
            assert city in turn.answer
            assert all(str(value) in turn.answer for value in json.loads(turn.result).values())
    assert sum(turn.call is None for _, turn in calls) > 0.1 * len(calls)


def test_questions_of_the_demo_are_taught(taught):
    answers = {dialogue.turns[0].ask: dialogue.turns[0].answer for dialogue in taught if not dialogue.system}
    assert "琴匠的小模型" in answers["你是谁？"]
    assert "Luthier's tiny model" in answers["Who are you?"]


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
