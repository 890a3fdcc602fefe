"""The numbers on the pages are those of `benchmarks/results.json`, and the short table says what the long one does."""

from __future__ import annotations

import importlib
import json
import re

import pytest


@pytest.fixture
def bench(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("pages")


@pytest.fixture
def results(tmp_path):
    """A file of results: one peer at its best and at its defaults, one that could not be measured."""

    def run(seconds, peak):
        steps = [{"cpu": 5.0 + seconds * number, "wall": 6.0, "tokens": 100, "computed": 100} for number in range(3)]
        return {"begin": {"cpu": 4.0, "wall": 5.0}, "steps": steps, "losses": [9.0, 8.0, 7.0], "peak": peak}

    def cell(peer, setting, pairs=(), reason=""):
        return {
            "method": "lora",
            "precision": "fp32",
            "peer": peer,
            "setting": setting,
            "pairs": [[run(ours, 900.0), run(theirs, 1200.0)] for ours, theirs in pairs],
            "reason": reason,
        }

    speed = [
        cell("One 1.0", "best", [(1.0, 2.0), (1.0, 1.5), (1.0, 1.0)]),
        cell("One 1.0", "default", [(1.0, 4.0)]),
        cell("Two 2.0", "best", reason="no wheel"),
    ]
    start = [{"side": "Luthier", "begin": 4.25}, {"side": "One 1.0", "begin": 9.0}, {"side": "Two 2.0", "reason": "no wheel"}]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"speed": speed, "start": start}), "utf-8")
    return path


def test_every_page_says_what_the_results_say(bench):
    for page, text in bench.pages().items():
        said = page.read_text("utf-8")
        assert bench.put_between(said, text) == said, f"{page.name} differs from results.json: python benchmarks/pages.py"


def test_the_short_table(bench, results, root):
    shown = bench.pages(results)
    english, chinese = shown[root / "README.md"], shown[root / "README.zh.md"]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in english.splitlines()]
    assert rows[0][-3:] == ["Luthier", "One 1.0", "Two 2.0"]
    assert rows[2] == ["LoRA fp32, tokens per CPU-second", "100", "1.50× / 4.00×", "–"]
    assert rows[3][1:] == ["900", "1,200", "–"]
    assert rows[4][1:] == ["4.2", "9.0", "–"]
    assert re.findall(r"[\d.]+×?", chinese.partition("LoRA fp32")[2]) == re.findall(
        r"[\d.]+×?", english.partition("LoRA fp32")[2]
    )
    assert "1.50 (1.00–2.00)" in shown[root / "benchmarks/README.md"]


def test_without_results_the_pages_say_so(bench, tmp_path):
    shown = bench.pages(tmp_path / "results.json")
    assert len(shown) == 3
    assert all("make bench" in text for text in shown.values())
