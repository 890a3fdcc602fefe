"""The page on answers: every example runs."""

from __future__ import annotations

from pathlib import Path

import pytest

import luthier
from luthier.generation.chat import ChatModel
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.format import write_adapter
from luthier.models.adapters.insert import insert_adapter
from tests.repo.pages import blocks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapters that the page speaks of."""
    folder = tmp_path_factory.mktemp("answers")
    for seed, name in enumerate(("polite", "terse")):
        model = luthier.load("tiny")
        assert isinstance(model, ChatModel)
        insert_adapter(model.model, AdapterConfig(rank=4, alpha=8), seed=seed)
        write_adapter(folder / name, model.model)
    return folder


@pytest.mark.parametrize("page", ["generation.md", pytest.param("generation.zh.md", marks=pytest.mark.slow)])
def test_every_example_runs(page: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(home)
    for block in blocks(ROOT / "docs" / page, "python"):
        exec(compile(block, page, "exec"), {})
        assert capsys.readouterr().out.strip(), block
