"""The arithmetic and the pages of `make bench`; nothing is trained here."""

from __future__ import annotations

import importlib
import json

import pytest


@pytest.fixture
def bench(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("table")


@pytest.fixture
def run(bench):
    def make(seconds, tokens=(100, 100, 100), losses=(9.0, 8.9, 8.8), computed=None):
        steps = [
            {"cpu": 5.0 + seconds * number, "wall": 6.0, "tokens": count, "computed": computed or count}
            for number, count in enumerate(tokens)
        ]
        return bench.Measured(begin={"cpu": 4.0, "wall": 5.0}, steps=steps, losses=list(losses), peak=1000.0)

    return make


def test_speed_leaves_the_first_step_out_and_counts_real_tokens(run):
    assert run(2.0, tokens=(1_000_000, 100, 300), computed=800).speed == pytest.approx(400 / 4.0)
    assert run(2.0, computed=150).padding == pytest.approx(1.5)


def test_the_ratio_is_the_median_of_ratios_within_pairs(bench, run):
    pairs = tuple((run(ours), run(theirs)) for ours, theirs in ((1.0, 2.0), (4.0, 4.0), (1.0, 5.0)))
    ratio = bench.Comparison("lora", "fp32", "peer", "best", pairs).ratio
    assert (ratio.middle, ratio.least, ratio.most) == pytest.approx((2.0, 1.0, 5.0))
    assert str(ratio) == "2.00 (1.00–5.00)"


def test_losses_are_compared_where_the_steps_hold_the_same_tokens(bench, run):
    same = bench.Comparison("lora", "fp32", "peer", "best", ((run(1.0), run(1.0, losses=(9.0, 8.9, 8.5))),))
    other = bench.Comparison("lora", "fp32", "peer", "best", ((run(1.0), run(1.0, tokens=(90, 110, 100))),))
    assert same.loss_differences == pytest.approx([0.0, 0.0, 0.3])
    assert other.loss_differences is None
    assert "other rows in a step" in other.cells()


def test_a_peer_without_numbers_is_a_row_with_the_reason(bench):
    failed = bench.Comparison("full", "bf16", "peer", "best", reason="no wheel")
    assert "not measured: no wheel" in bench.tables([failed], [bench.Start("peer", reason="no wheel")])
    assert len(failed.cells()) == len(bench.SPEED)


def test_results_survive_their_file(bench, run):
    cell = bench.Comparison("lora", "fp32", "peer", "best", ((run(1.0), run(2.0)),))
    assert bench.Comparison.of(json.loads(json.dumps(cell.to_json()))) == cell


def test_the_page_is_changed_between_its_markers_alone(bench, root):
    page = f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter"
    changed = bench.put_between(page, r"new \1")
    assert changed.startswith("before\n")
    assert changed.endswith("\nafter")
    assert r"new \1" in changed
    assert "old" not in changed
    with pytest.raises(ValueError, match="measured"):
        bench.put_between("no markers", "new")
    assert bench.put_between((root / "benchmarks/README.md").read_text("utf-8"), "") != ""


def test_every_peer_has_a_script_and_pins(bench, root):
    sides = importlib.import_module("sides")
    for side in sides.PEERS.values():
        assert side.script.is_file()
        assert "==" in side.pins.read_text("utf-8")
    assert sides.LUTHIER.script.is_file()
