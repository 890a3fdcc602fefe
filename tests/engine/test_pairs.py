"""Which answers of a rollout become a pair."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.data.sides import CHOSEN, REJECTED
from luthier.engine.judged import Judged
from luthier.engine.pairs import pair_store, paired, telling
from luthier.generation.bulk import Written
from tests.preferences import drawn_of, pairs


def judged(rewards: list[list[float]]) -> Judged:
    """Answers to as many prompts; each answer's tokens are its number."""
    store = drawn_of(pairs()[: len(rewards)], paired=False).store
    written = [Written(np.array([n], np.int32), np.zeros(1, np.float32), "", True) for n in range(sum(map(len, rewards)))]
    member = np.repeat(np.arange(len(rewards)), [len(each) for each in rewards])
    return Judged(written, member, member + 7, np.array([value for each in rewards for value in each]), [], store)


def tokens(found: Judged) -> list[int]:
    return [int(answer.tokens[0]) for answer in found.written]


NONE = float("nan")


def test_the_best_stands_beside_the_worst() -> None:
    found, told = paired(judged([[0.0, 2.0, 1.0], [3.0, -1.0, NONE], [1.0, 1.0, 1.0], [NONE, 1.0, NONE]]), 0.0)
    assert tokens(found) == [1, 0, 3, 4]
    assert found.groups.tolist() == [7, 7, 8, 8]
    assert told == {"pairs": 0.5, "gap": 3.0}
    assert telling(found, 0.0).all()
    store = pair_store(found)
    assert store.label.tolist() == [CHOSEN, REJECTED] * 2
    assert store.group.tolist() == [7, 7, 8, 8]
    assert [int(store.segment(row)[0][-1]) for row in range(4)] == tokens(found)
    assert store.supervised.tolist() == [1] * 4


def test_a_margin_is_to_be_exceeded() -> None:
    found, told = paired(judged([[0.0, 0.5], [0.0, 0.6]]), 0.5)
    assert tokens(found) == [3, 2]
    assert told == pytest.approx({"pairs": 0.5, "gap": 0.6})


@pytest.mark.parametrize("rewards", [[[1.0, 1.0], [0.0, 0.0]], [[NONE, NONE], [NONE, 1.0]]])
def test_where_there_is_none_one_stands_in(rewards: list[list[float]]) -> None:
    found, told = paired(judged(rewards), 0.0)
    assert len(found.written) == 2
    assert told == {"pairs": 0.0, "gap": 0.0}
    assert not telling(found, 0.0).any()
