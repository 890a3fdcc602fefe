"""`luthier data`: what a recipe would learn from, and mistakes with their place in the recipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from luthier.cli.app import run
from tests.workspace import Workspace


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Workspace.make(tmp_path)


def test_preview_prints_the_first_batch_with_what_is_learnt(space: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "preview", "recipe.yaml", "--rows", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^── 1 of 4 · rows\.json:1 · \d+ tokens, \d+ learnt ──$", out, re.M)
    assert out.count("⟦") == out.count("⟧") == 2
    assert "… and 2 more (--rows)" in out


def test_stats_count_the_steps_of_an_epoch(space: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "stats", "recipe.yaml"]) == 0
    out = capsys.readouterr().out
    assert "one epoch: 20 units, 20 segments" in out
    assert "steps per epoch: 5" in out


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.template=qwne", r"recipe\.yaml:4: data\.template: unknown template `qwne`\. Did you mean `qwen`\?"),
        ("model.path=./nowhere", r"recipe\.yaml:\d+: .*nowhere: no such folder"),
        ("data.validation=20", r"recipe\.yaml:\d+: data\.validation: 20 of 20 examples"),
        ("train.per_device_batch_size=3", r"recipe\.yaml:\d+: .*3 × 1 × 1 = 3"),
    ],
)
def test_a_mistake_names_its_place_in_the_recipe(
    space: Workspace, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    assert run(["data", "stats", "recipe.yaml", override]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.match(f"error: {said}", line), line
