"""What an epoch of several sources is made of, and in which order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.batch import GlobalBatches, filled
from luthier.data.mix import Mixture, Portion, windowed
from luthier.data.units import Units
from tests.stores import build_store

ONE = np.ones(1000, np.int64)


def mixture(*sources: tuple[int, float], **kind: object) -> Mixture:
    """Sources of (units, weight)."""
    firsts = np.cumsum([0, *(units for units, _ in sources)]).tolist()
    portions = tuple(Portion(first, units, weight) for first, (units, weight) in zip(firsts, sources, strict=False))
    return Mixture(portions, **kind)  # type: ignore[arg-type]


def owners(found: Mixture, units: np.ndarray) -> np.ndarray:
    """The source of each unit."""
    return np.searchsorted([p.first for p in found.portions], units, side="right") - 1


def test_one_source_is_a_permutation_that_is_pinned() -> None:
    for epoch, order in enumerate(([3, 6, 0, 4, 7, 1, 2, 5], [0, 1, 6, 5, 3, 7, 4, 2])):
        assert mixture((8, 1.0)).epoch(epoch, ONE[:8], seed=42).tolist() == order


@settings(max_examples=50, deadline=None)
@given(units=st.integers(1, 30), weight=st.floats(0.05, 4), epochs=st.integers(1, 6), seed=st.integers(0, 9))
def test_no_unit_comes_again_before_all_have_come(units: int, weight: float, epochs: int, seed: int) -> None:
    both = mixture((units, weight), (5, 1.0))
    drawn = np.concatenate([both.epoch(epoch, ONE[: units + 5], seed=seed) for epoch in range(epochs)])
    seen = np.bincount(drawn[drawn < units], minlength=units)
    assert seen.sum() == epochs * round(weight * units)
    assert seen.max() - seen.min() <= 1
    assert (np.bincount(drawn[drawn >= units] - units, minlength=5) == epochs).all()


def test_a_repeated_source_is_spread_over_the_epoch_pass_by_pass() -> None:
    order = mixture((50, 3.0)).epoch(0, ONE[:50], seed=1)
    assert [sorted(order[begin : begin + 50]) for begin in (0, 50, 100)] == [list(range(50))] * 3
    assert order[:50].tolist() != order[50:100].tolist()


@pytest.mark.parametrize(("upsample", "length", "given_"), [(False, 40, [30, 10]), (True, 400, [300, 100])])
def test_interleaved_every_stretch_has_each_share(upsample: bool, length: int, given_: list[int]) -> None:
    both = mixture((30, 3.0), (100, 1.0), mix="interleave", upsample=upsample)
    assert both.draws(ONE[:130], seed=0) == given_
    for epoch in range(2):
        order = both.epoch(epoch, ONE[:130], seed=0)
        assert len(order) == length
        for begin in range(0, length, 8):
            assert abs(int((owners(both, order[begin : begin + 8]) == 0).sum()) - 6) <= 1
    if upsample:
        seen = np.bincount(both.epoch(0, ONE[:130], seed=0), minlength=130)
        assert seen.tolist() == [10] * 30 + [1] * 100


def test_interleaved_by_tokens_the_shares_are_of_tokens() -> None:
    tokens = np.concatenate([np.full(200, 10), np.random.default_rng(0).integers(50, 150, 100)])
    both = mixture((200, 1.0), (100, 1.0), mix="interleave", weigh_by="tokens")
    order = both.epoch(0, tokens, seed=0)
    shares = [np.bincount(owners(both, part), weights=tokens[part]) for part in np.array_split(order, 4)]
    assert len(order) == sum(both.draws(tokens, seed=0)) == 220
    for first, second in shares:
        assert 0.8 < first / second < 1.25


def test_one_epoch_goes_on_where_the_last_ended() -> None:
    both = mixture((10, 1.0), (100, 1.0), mix="interleave")
    drawn = np.concatenate([both.epoch(epoch, ONE[:110], seed=3) for epoch in range(10)])
    assert (np.bincount(drawn)[10:] == 1).all(), "ten epochs of ten see the long source once"


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.sampled_from([0.5, 1.0, 2.0, 2.5])), min_size=1, max_size=3),
    by=st.sampled_from(["examples", "tokens"]),
    upsample=st.booleans(),
    data=st.data(),
)
def test_as_they_stand_the_one_that_lags_behind_is_next(
    sizes: list[tuple[int, float]], by: str, upsample: bool, data: st.DataObject
) -> None:
    """Against the rule itself, taken one unit at a time, as a stream does."""
    total = sum(units for units, _ in sizes)
    tokens = np.array(data.draw(st.lists(st.integers(1, 9), min_size=total, max_size=total)))
    several = mixture(*sizes, mix="interleave", weigh_by=by, upsample=upsample, window=1)
    order, place, given_, seen = [], [0] * len(sizes), [0.0] * len(sizes), [False] * len(sizes)
    while True:
        turn = min(range(len(sizes)), key=lambda number: (given_[number] / sizes[number][1], number))
        portion = several.portions[turn]
        if place[turn] == portion.units:
            seen[turn], place[turn] = True, 0
            if not upsample or all(seen):
                break
        unit = portion.first + place[turn]
        order.append(unit)
        place[turn] += 1
        given_[turn] += tokens[unit] if by == "tokens" else 1
    assert several.epoch(0, tokens, seed=0).tolist() == order


def test_windows_shuffle_stretches_of_the_data() -> None:
    order = mixture((25, 1.0), window=10).epoch(0, ONE[:25], seed=5)
    assert [sorted(order[a:b]) for a, b in pairwise([0, 10, 20, 25])] == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 25)),
    ]
    assert order[:10].tolist() != list(range(10))
    assert order.tolist() != mixture((25, 1.0), window=10).epoch(1, ONE[:25], seed=5).tolist()
    assert windowed(np.arange(10, 20), 10, 5, 0, first=10).tolist() == order[10:20].tolist()


def test_a_fraction_as_it_stands_needs_no_length() -> None:
    long, short = (mixture((units, 1.5), window=1).epoch(0, ONE[:units], seed=2).tolist() for units in (100, 60))
    assert long[:100] == list(range(100))
    assert 30 < len(long[100:]) < 70
    assert short[60:] == [unit for unit in long[100:] if unit < 60]


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=40), tokens=st.integers(1, 100))
def test_steps_are_filled_in_order(sizes: list[int], tokens: int) -> None:
    bounds = filled(np.cumsum(sizes), tokens).tolist()
    assert (bounds[0], bounds[-1]) == (0, len(sizes))
    for begin, end in pairwise(bounds):
        assert sum(sizes[begin : end - 1]) < tokens
        assert sum(sizes[begin:end]) >= tokens or end == len(sizes)


def test_steps_of_windows_need_no_history_either(tmp_path: Path) -> None:
    lengths = np.random.default_rng(1).integers(1, 60, 50).tolist()
    store = build_store(tmp_path / "store", lengths)
    units = Units(np.arange(51), np.arange(50, dtype=np.int32), mixture((20, 1.0), (30, 1.0), window=7))
    walked = GlobalBatches(store, units, seed=3, batch_tokens=100)
    steps = [walked(step).segments.tolist() for step in range(60)]
    for step in (59, 0, 30, 15):
        assert GlobalBatches(store, units, seed=3, batch_tokens=100)(step).segments.tolist() == steps[step]
    flat = [row for step in steps for row in step]
    assert sorted(flat[:50]) == sorted(flat[50:100]) == list(range(50))


def test_a_unit_drawn_twice_is_two_groups(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [4] * 6, groups=[0, 0, 1, 1, 2, 2])
    units = Units(np.array([0, 2, 4, 6]), np.arange(6, dtype=np.int32), mixture((3, 2.0)))
    drawn = GlobalBatches(store, units, seed=1, batch_size=6)(0)
    assert sorted(drawn.segments.tolist()) == sorted([*range(6)] * 2)
    assert drawn.units == len(set(drawn.groups.tolist())) == 6
