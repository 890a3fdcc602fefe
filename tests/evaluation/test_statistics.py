"""Intervals: seeded, paired, and as wide as theory says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from luthier.evaluation.statistics import Measure, compared, mean, resampled


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    right = np.random.default_rng(3).random(400) < 0.7
    found = compared(mean("accuracy", right), None, 0).base
    error = math.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert found.value == right.mean()
    assert found.low == pytest.approx(right.mean() - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(right.mean() + 1.96 * error, abs=0.3 * error)


def test_a_difference_is_drawn_in_pairs():
    base = np.random.default_rng(0).random(300) < 0.5
    tuned = base.copy()
    tuned[np.flatnonzero(~base)[:15]] = True  # five per cent more, and nothing lost
    found = compared(mean("accuracy", base), mean("accuracy", tuned), 0)
    assert found.difference.value == pytest.approx(0.05)
    assert 0.02 < found.difference.low < 0.05 < found.difference.high < 0.08
    assert found.sure
    assert found.base.high > found.tuned.low  # the two intervals alone would not show it
    same = compared(mean("accuracy", base), mean("accuracy", base), 0)
    assert (same.difference.low, same.difference.high) == (0, 0)
    assert not same.sure


def test_draws_are_those_of_the_seed():
    rows = np.arange(14.0).reshape(7, 2)
    assert np.array_equal(resampled(rows, 1), resampled(rows, 1))
    assert not np.array_equal(resampled(rows, 1), resampled(rows, 2))
    assert (resampled(np.ones((5, 1)), 0) == 5).all()


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    rows = np.random.default_rng(0).random((9, 3))
    whole = resampled(rows, 4)
    monkeypatch.setattr("luthier.evaluation.statistics._AT_ONCE", 27)
    assert np.array_equal(whole, resampled(rows, 4))


def test_too_few_items_and_known_values_have_no_interval():
    assert compared(mean("accuracy", [True]), None, 0).base == (1.0, None, None)
    known = Measure("x", np.zeros((0, 0)), known=3.5)
    assert compared(known, known, 0).difference == (0.0, None, None)
