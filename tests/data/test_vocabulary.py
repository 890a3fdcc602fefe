"""Tokens without an embedding are found in stores and in streams, whatever else is in them, and told with file and line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from luthier.data.loader import batches_of
from luthier.data.prepare import prepare
from luthier.data.store import Header, SourceInfo, memory_store
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.data.vocabulary import check_store
from luthier.errors import UserError
from luthier.models.hub import fetch
from luthier.recipe.schema import Recipe

SEGMENTS = [[5, 6, 7], [8], [9, 20, 10], [30]]
"""Token ids of four rows."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(fetch("tiny"))


def test_the_first_is_named_with_its_line(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.data.vocabulary.AT_ONCE", 2)
    offsets = [sum(map(len, SEGMENTS[:number])) for number in range(len(SEGMENTS) + 1)]
    zeros = [0] * len(SEGMENTS)
    columns = {
        "tokens": [token for segment in SEGMENTS for token in segment],
        "weight": [1] * offsets[-1],
        "offsets": offsets,
        "line": [11, 12, 13, 14],
    }
    columns |= dict.fromkeys(("example", "source", "group", "file", "label"), zeros)
    sources = (SourceInfo("rows", "train", 0, 4, files=("rows.jsonl",)),)
    store = memory_store(Header("key", "pt", None, 8, 0, 0, sources), columns)
    for rows, told in ((31, None), (None, None), (30, r"rows\.jsonl:14: .* token 30 "), (20, r"rows\.jsonl:13: .* token 20 ")):
        if told is None:
            check_store(store, tokenizer, rows)
            continue
        with pytest.raises(UserError, match=told) as caught:
            check_store(store, tokenizer, rows)
        assert "\n" not in str(caught.value)


def test_a_stream_is_looked_at_batch_by_batch(tokenizer: Tokenizer, tmp_path: Path) -> None:
    late = tokenizer.encode("aa").ids.tolist()
    texts = ["a"] * 9 + ["aa"]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    data = {"train": str(tmp_path / "rows.jsonl"), "streaming": True, "order": "window(1)"}
    recipe = Recipe.model_validate({"model": "tiny", "stage": "pt", "data": data, "train": {"max_steps": 10}})
    rows = max(late)
    assert max(tokenizer.encode("a").ids) < rows
    batches = batches_of(
        prepare(recipe, tokenizer, None), recipe, (1, None), check=partial(check_store, tokenizer=tokenizer, rows=rows)
    )
    try:
        for step in range(9):
            batches(step)
        with pytest.raises(UserError, match=rf"rows\.jsonl:10: .* token {rows} "):
            batches(9)
    finally:
        batches.close()
