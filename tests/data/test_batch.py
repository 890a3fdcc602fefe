"""Which examples a step sees depends on (seed, step) alone; how they are laid out loses nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.batch import GlobalBatches, lay_out, make_batch
from luthier.data.store import TokenStore
from luthier.data.units import Units
from tests.stores import build_store


def units_of(sizes: list[int]) -> Units:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Units(offsets, np.arange(offsets[-1], dtype=np.int32))


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return build_store(tmp_path / "store", [5, 3, 9, 1, 7, 4, 6])


def test_ninety_one_rows_at_eight_are_twelve_steps(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [4] * 91)
    batches = GlobalBatches(store, units_of([1] * 91), seed=1, batch_size=8)
    assert batches.steps_per_epoch == 12
    seen = [batches(step).segments for step in range(12)]
    assert [len(rows) for rows in seen] == [8] * 11 + [3]
    assert sorted(np.concatenate(seen)) == list(range(91))
    assert sorted(np.concatenate([batches(step).segments for step in range(12, 24)])) == list(range(91))
    assert not np.array_equal(seen[0], batches(12).segments)


def test_a_step_needs_no_history(store: TokenStore) -> None:
    one = GlobalBatches(store, units_of([2, 1, 3, 1]), seed=3, batch_size=2)
    walked = [one(step).segments for step in range(6)]
    for step in (5, 0, 3):
        again = GlobalBatches(store, units_of([2, 1, 3, 1]), seed=3, batch_size=2)
        assert np.array_equal(again(step).segments, walked[step])


def test_order_is_pinned(tmp_path: Path) -> None:
    """A change here would change what every resumed run learns from."""
    batches = GlobalBatches(build_store(tmp_path / "store", [4] * 8), units_of([1] * 8), seed=42, batch_size=2)
    assert batches.epoch(0).tolist() == PINNED[0]
    assert batches.epoch(1).tolist() == PINNED[1]


PINNED = ([3, 6, 0, 4, 7, 1, 2, 5], [0, 1, 6, 5, 3, 7, 4, 2])


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60), tokens=st.integers(1, 400), epoch=st.integers(0, 3))
def test_batch_tokens_covers_each_epoch_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], tokens: int, epoch: int
) -> None:
    store = build_store(tmp_path_factory.mktemp("s") / "store", sizes)
    batches = GlobalBatches(store, units_of([1] * len(sizes)), seed=0, batch_tokens=tokens)
    steps = batches.steps_per_epoch
    rows = [batches(step).segments for step in range(epoch * steps, (epoch + 1) * steps)]
    assert all(len(row) for row in rows)
    assert sorted(np.concatenate(rows)) == list(range(len(sizes)))


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    groups=st.integers(1, 4),
    budget=st.integers(50, 200),
    ranks=st.integers(1, 4),
)
def test_lay_out_keeps_all_and_respects_the_budget(lengths: list[int], groups: int, budget: int, ranks: int) -> None:
    sizes = np.array(lengths)
    group = np.arange(len(sizes)) // groups
    bins = lay_out(np.arange(len(sizes)), sizes, group, micro_batch_tokens=budget, ranks=ranks)
    assert len(bins) == ranks
    assert len({len(passes) for passes in bins}) == 1
    flat = [row for passes in bins for row in passes]
    assert sorted(np.concatenate(flat).tolist()) == list(range(len(sizes)))
    for row in flat:
        assert sizes[row].sum() <= budget or len(set(group[row])) == 1
    homes = [set(group[row]) for row in flat]
    assert sum(len(home) for home in homes) == len(set(group))


def test_ranks_are_balanced() -> None:
    lengths = np.array([100, 90, 80, 70, 60, 50, 40, 30, 20, 10])
    bins = lay_out(np.arange(10), lengths, np.arange(10), micro_batch_tokens=1000, ranks=2)
    loads = [sum(int(lengths[row].sum()) for row in passes) for passes in bins]
    assert max(loads) - min(loads) <= 10


def test_batch_lays_segments_end_to_end(store: TokenStore) -> None:
    batch = make_batch(store, [2, 0])
    assert len(batch) == 14
    assert batch.max_length == 9
    assert batch.cu_seqlens.tolist() == [0, 9, 14]
    assert batch.positions.tolist() == [*range(9), *range(5)]
    assert batch.tokens.tolist() == [*store.segment(2)[0].tolist(), *store.segment(0)[0].tolist()]
    assert 0 not in batch.targets.tolist()
    assert 9 not in batch.targets.tolist()
    assert (batch.weight[batch.targets] != 0).all()
    assert batch.target_segments.tolist() == [0 if target < 9 else 1 for target in batch.targets.tolist()]
