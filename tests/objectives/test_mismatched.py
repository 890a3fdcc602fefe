"""Prompts get answers to other prompts, of which only the answer counts."""

from __future__ import annotations

from luthier.objectives.mismatched import mismatched
from tests.preferences import drawn_of, pairs

ROWS = pairs()


def test_each_prompt_gets_the_answer_to_another() -> None:
    found = mismatched(drawn_of(ROWS, paired=False))
    count = len(ROWS)
    for place, (prompt, own, _) in enumerate(ROWS):
        tokens, weight = found.store.segment(place)
        answer = ROWS[(place + count // 2) % count][1]
        assert tokens.tolist() == prompt + answer
        assert answer != own
        assert weight.tolist() == [0] * len(prompt) + [1] * len(answer)
    assert sorted(found.lengths.tolist()) != sorted(len(prompt) + len(answer) for prompt, answer, _ in ROWS)


def test_neighbours_of_one_prompt_are_not_paired() -> None:
    """Opinions made of pairs lie side by side when they are evaluated."""
    for count in (4, 6, 7, 10):
        rows = ROWS[:count]
        found = mismatched(drawn_of(rows, paired=False))
        prompts = [tuple(prompt) for prompt, _, _ in rows]
        owners = {tuple(answer): tuple(prompt) for prompt, answer, _ in rows}
        for place, prompt in enumerate(prompts):
            tokens, _ = found.store.segment(place)
            assert owners[tuple(tokens.tolist()[len(prompt) :])] != prompt


def test_what_is_too_long_loses_its_end_and_one_alone_is_itself() -> None:
    drawn = drawn_of([([5] * 500, [6] * 4, 1), ([7] * 4, [8] * 100, 0)], paired=False)
    assert mismatched(drawn).lengths.tolist() == [512, 8]
    alone = mismatched(drawn_of(ROWS[:1], paired=False))
    assert alone.store.segment(0)[0].tolist() == ROWS[0][0] + ROWS[0][1]
