"""Texts with labels, and margins of pairs, on their way from a file to a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.data.batch import Drawn
from luthier.data.examples import Labelled, Origin
from luthier.data.formats import FORMATS, lost
from luthier.data.labels import with_labels
from luthier.data.loader import batches_of
from luthier.data.prepare import Dataset
from luthier.data.problems import RowError
from luthier.data.tokenizer import load_tokenizer
from luthier.engine.passes import with_brought
from luthier.objectives import objective_of
from luthier.recipe.load import recipe_from
from luthier.recipe.schema import Classification, Recipe, RewardModelling
from luthier.workshop.assembly import prepare_data
from tests.e2e.test_classifiers import small_bert

HERE = Origin("rows.json", 1, 0)


def recipe_of(folder: Path, rows: list[Any], stage: Any, **sections: Any) -> Recipe:
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = {"train": [str(folder / "rows.jsonl")], "max_length": 64} | sections.pop("data", {})
    return recipe_from({"model": "tiny", "stage": stage, "data": data, **sections}, folder)


def prepared(folder: Path, rows: list[Any], stage: Any, **sections: Any) -> Dataset:
    return prepare_data(recipe_of(folder, rows, stage, **sections))[2]


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("good", ("good",)),
        (3, ("3",)),
        (0.5, ("0.5",)),
        (True, ("true",)),
        ([], ()),
        (["a", 2], ("a", "2")),
        ('["a", "b"]', ("a", "b")),
    ],
)
def test_labels_in_all_their_spellings(value: Any, labels: tuple[str, ...]) -> None:
    for name in ("label", "labels"):
        [found] = FORMATS["classification"].parse({"text": "x", name: value}, HERE, {})
        assert found == Labelled("x", HERE, labels)
        assert lost(FORMATS["classification"], found) == []
    assert lost(FORMATS["text"], Labelled("x", HERE, ("a",))) == ["that it is a labelled"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x", "label": None}, "`label` is empty"),
        ({"text": "x", "labels": ["a", " "]}, "`labels` is text"),
        ({"text": " ", "label": "a"}, "`text` is empty"),
        ({"text": "x", "label": {"a": 1}}, "`label` is a mapping"),
    ],
)
def test_what_is_no_label_is_named(row: Any, said: str) -> None:
    with pytest.raises(RowError, match=said):
        FORMATS["classification"].parse(row, HERE, {})


def test_a_text_is_what_plain_calls_of_the_tokenizer_give(tmp_path: Path) -> None:
    bert = load_tokenizer(small_bert(tmp_path / "bert"))
    model = {"path": str(tmp_path / "bert")}
    text = "a plum and a pear and a plum"
    dataset = prepared(tmp_path, [{"text": text, "label": "x"}], "classify", model=model)
    assert dataset.store.segment(0)[0].tolist() == bert.hf(text).input_ids
    cut = prepared(tmp_path, [{"text": text, "label": "x"}], "classify", model=model, data={"max_length": 9})
    assert cut.store.segment(0)[0].tolist() == bert.hf(text, truncation=True, max_length=9).input_ids
    assert cut.report.truncated == 1


def test_names_stand_in_a_fixed_order(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": label} for label in ("b", "10", "9", "a", "b")]
    store = prepared(tmp_path, rows, "classify").store
    assert with_labels(Classification(), store).labels == ("9", "10", "a", "b")
    assert with_labels(Classification(labels=("a", "b", "9", "10")), store).labels == ("a", "b", "9", "10")


@pytest.mark.parametrize("streaming", [False, True])
def test_margins_and_labels_reach_the_batch(tmp_path: Path, streaming: bool) -> None:
    def first(rows: list[Any], stage: Any, objective: Any) -> Drawn:
        recipe = recipe_of(tmp_path, rows, stage, data={"streaming": streaming, "order": "window(8)"}, train={"max_steps": 1})
        batches = batches_of(prepare_data(recipe)[2], recipe, (8, None))
        try:
            return with_brought(objective_of(objective), batches(0))
        finally:
            batches.close()

    pairs = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b", "margin": n or None} for n in range(3)]
    drawn = first(pairs, "rm", RewardModelling())
    batch = drawn.batch(np.arange(len(drawn.segments)))
    found = sorted(zip(batch.columns["margin"].tolist(), batch.label.tolist(), strict=True))
    assert found == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    texts = [{"text": "x", "label": label} for label in (["a"], ["a", "b"], [])]
    stage = {"type": "classify", "task": "multi", "labels": ["a", "b"]}
    drawn = first(texts, stage, Classification.model_validate(stage))
    assert sorted(drawn.batch(np.arange(3)).columns["labels"].tolist()) == [[0, 0], [1, 0], [1, 1]]


def test_a_stream_has_to_be_told_its_labels(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="has to name the labels of a stream"):
        recipe_of(tmp_path, [], "classify", data={"streaming": True}, train={"max_steps": 1})
