"""What people see of their data: the mask in the text, and the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from luthier.chat import resolve
from luthier.cli.data import data_app
from luthier.data.batch import GlobalBatches
from luthier.data.prepare import prepare
from luthier.data.preview import LEARNT, coloured, stats
from luthier.data.tokenizer import load_tokenizer
from luthier.recipe.schema import Recipe


@pytest.mark.parametrize("name", ["minimind", "llama2"])
def test_the_text_is_shown_whole_with_the_mask(shared: Path, name: str) -> None:
    tokenizer = load_tokenizer(shared / "data/tokenizers" / name)
    ids = tokenizer.encode("Question: 你好?\nAnswer: good day\n").ids
    pieces = [tokenizer.decode(ids[: k + 1], skip_special=False) for k in range(len(ids))]
    begin = next(k for k, text in enumerate(pieces) if text.endswith(" good"))
    weight = np.zeros(len(ids))
    weight[begin : begin + 2] = 0.5
    text = coloured(tokenizer, ids, weight)
    assert text.plain == "Question: 你好?\nAnswer:⟦ good day⟧\n"
    assert [text.plain[span.start : span.end] for span in text.spans if span.style == LEARNT] == ["⟦ good day⟧"]
    assert coloured(tokenizer, [], np.zeros(0)).plain == ""


def test_stats_measure_one_epoch(shared: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(shared / "data/tokenizers/minimind")
    rows = [{"instruction": "q", "output": "word " * count} for count in (1, 2, 3, 400)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    recipe = Recipe.model_validate(
        {"model": "tiny", "data": {"train": [{"path": str(tmp_path / "a.json"), "weight": 2}], "max_length": 100}}
    )
    dataset = prepare(recipe, tokenizer, resolve("chatml", None, tokenizer.variables))
    found = stats(dataset, GlobalBatches(dataset.store, dataset.train, seed=1, batch_size=8))
    lengths = dataset.store.lengths
    assert (found.units, found.segments, found.tokens) == (8, 8, 2 * int(lengths.sum()))
    assert (found.percentiles[0], found.percentiles[100]) == (int(lengths.min()), 100)
    assert found.truncated == 0.25
    assert found.supervised == pytest.approx((np.asarray(dataset.store.weight) != 0).mean())
    assert "longest 100" in "\n".join(found.lines())


@pytest.fixture
def recipe_file(shared: Path, tmp_path: Path) -> Path:
    rows = [{"instruction": f"q{number}", "output": f"[b]answer {number}[/b]"} for number in range(20)]
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    file = tmp_path / "r.yaml"
    model = shared / "data/tokenizers/minimind"
    file.write_text(f"model: {{path: {model}}}\ndata: {{train: [rows.json], template: chatml}}\n")
    return file


def test_preview_prints_the_first_batch(recipe_file: Path) -> None:
    result = CliRunner().invoke(data_app, ["preview", str(recipe_file), "train.batch_size=3", "--rows", "2"])
    assert result.exit_code == 0, result.output
    assert result.output.count("⟦[b]answer ") == 2, "text of the data is never taken for markup"
    assert "1 of 3" in result.output
    assert "rows.json:" in result.output
    assert "… and 1 more" in result.output


def test_stats_prints_the_numbers(recipe_file: Path) -> None:
    result = CliRunner().invoke(data_app, ["stats", str(recipe_file), "data.validation=4"])
    assert result.exit_code == 0, result.output
    for words in ("20 examples", "trained on: 16", "median", "supervised: ", "steps per epoch: 2"):
        assert words in result.output
