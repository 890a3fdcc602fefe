"""The examination of the embedded model: fixed, bilingual, never taught, and passed."""

from __future__ import annotations

import json
from collections import Counter

import pytest

MARGIN = 10
"""Of 200: how many fewer right answers than the card says another processor may cost."""


@pytest.fixture(scope="module")
def rows(script):
    examine = script("examine")
    return examine.rows_of(examine.EXAM)


def test_the_file_is_what_the_generator_makes(script, rows, examined):
    assert list(script("exam").exam(examined)) == rows


def test_two_hundred_questions_half_in_each_language(rows):
    assert len(rows) == len({json.dumps(row["messages"], ensure_ascii=False) for row in rows}) == 200
    assert Counter(row["language"] for row in rows) == {"en": 100, "zh": 100}


def test_every_answer_passes_its_own_rule(rows):
    for row in rows:
        assert row["messages"][-1]["role"] in ("user", "tool")
        assert row["expect"]
        assert any(expected in row["answer"] for expected in row["expect"]), row


def test_none_was_taught(script, rows, taught):
    """Whatever the punctuation; questions with tools are told apart by their tools, which test_dialogues looks at."""
    plain = script("dialogue").plain
    asked = {tuple(plain(m["content"]) for m in row["messages"] if m["role"] == "user") for row in rows if "tools" not in row}
    assert not asked & {tuple(plain(turn.ask) for turn in dialogue.turns) for dialogue in taught if not dialogue.tools}


@pytest.mark.slow
def test_the_embedded_model_passes(script, rows, root, capsys):
    """The thresholds of a model that is a good ground for later stages: it knows itself, and has sums left to learn."""
    examine = script("examine")
    counts = examine.examine("tiny", rows)
    with capsys.disabled():
        print("\n" + examine.table(counts))
    recorded = json.loads((root / "src/luthier/models/tiny/build.json").read_text("utf-8"))["exam"]
    share = {kind: right / asked for kind, (right, asked) in counts.items()}
    assert share["identity"] >= 0.9
    assert share["greeting"] >= 0.9
    assert 0.2 <= share["two-digit sum"] <= 0.6
    assert examine.whole(counts)[0] >= sum(right for right, _ in recorded.values()) - MARGIN
