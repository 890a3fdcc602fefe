"""A stream gives what a store of the same rows gives, and goes on from any step without reading what lies before."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from luthier.chat import ChatTemplate, resolve
from luthier.data.loader import batches_of
from luthier.data.prepare import prepare
from luthier.data.sources import _far_parts
from luthier.data.stream_batches import StreamBatches
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.data.write import RowWriter
from luthier.errors import UserError
from luthier.recipe.schema import Recipe

STEPS = 14


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> Tokenizer:
    return load_tokenizer(shared / "data/tokenizers/minimind")


@pytest.fixture(scope="module")
def chatml(tokenizer: Tokenizer) -> ChatTemplate:
    return resolve("chatml", None, tokenizer.variables)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))


def rows(count: int, word: str) -> list[dict[str, str]]:
    return [{"instruction": f"{word} {number}?", "output": f"{word} " * (1 + number * 7 % 11)} for number in range(count)]


def written(path: Path, content: list[Any]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in content), encoding="utf-8")
    return str(path)


def recipe(train: Any, *, stage: str = "sft", **data: Any) -> Recipe:
    values = {"train": train, "order": "window(7)", **data}
    return Recipe.model_validate({"model": "tiny", "stage": stage, "data": values, "train": {"max_steps": STEPS}})


Batch = list[tuple[list[int], list[float], str]]


def steps(
    recipe: Recipe, tokenizer: Tokenizer, template: ChatTemplate | None, *, size: tuple[int | None, int | None] = (4, None),
    begin: int = 0, cursor: dict[str, Any] | None = None, count: int = STEPS,
) -> Iterator[tuple[Batch, dict[str, Any] | None]]:  # fmt: skip
    """What each step learns from, with the rank of its groups, and the cursor after it."""
    batches = batches_of(prepare(recipe, tokenizer, template), recipe, size, cursor)
    try:
        for step in range(begin, count):
            drawn = batches(step)
            group = np.unique(drawn.groups, return_inverse=True)[1]
            found = [
                (*map(list, drawn.store.segment(int(row))), int(drawn.store.source[row]), int(drawn.store.line[row]))
                for row in drawn.segments
            ]
            yield (
                [
                    (tokens, weight, f"{source}:{line}:{number}")
                    for (tokens, weight, source, line), number in zip(found, group, strict=True)
                ],
                batches.cursor(),
            )
    finally:
        batches.close()


def both(folder: Path) -> list[dict[str, Any]]:
    return [
        {"path": written(folder / "a.jsonl", rows(13, "cat")), "weight": 1.5},
        {"path": written(folder / "b.jsonl", rows(6, "dog")), "weight": 1.0},
    ]


MIXES: list[dict[str, Any]] = [
    {},
    {"mix": "interleave"},
    {"mix": "interleave", "upsample": True},
    {"mix": "interleave", "upsample": True, "weigh_by": "tokens"},
]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("size", [(4, None), (None, 90)])
def test_a_stream_gives_what_a_store_gives(
    tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate, mix: dict[str, Any], size: tuple[int | None, int | None]
) -> None:
    sources = both(tmp_path)
    stored = [batch for batch, _ in steps(recipe(sources, **mix), tokenizer, chatml, size=size)]
    streamed = [batch for batch, _ in steps(recipe(sources, streaming=True, **mix), tokenizer, chatml, size=size)]
    assert streamed == stored
    assert len({place for batch in stored for *_, place in batch}) > 10


def test_chunks_of_documents_too(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = [{"text": "once upon a time " * (1 + number * 5 % 9)} for number in range(8)]
    sources = [{"path": written(tmp_path / "a.jsonl", documents), "max_tokens": 200}]
    settings: dict[str, Any] = {"stage": "pt", "max_length": 16}
    stored = [batch for batch, _ in steps(recipe(sources, **settings), tokenizer, None, size=(None, 40))]
    streamed = list(steps(recipe(sources, streaming=True, **settings), tokenizer, None, size=(None, 40)))
    assert [batch for batch, _ in streamed] == stored
    for step in (1, 5, 9):
        cursor = json.loads(json.dumps(streamed[step][1]))
        later = steps(
            recipe(sources, streaming=True, **settings), tokenizer, None, size=(None, 40), begin=step + 1, cursor=cursor
        )
        assert [batch for batch, _ in later] == stored[step + 1 :]


@pytest.mark.parametrize("mix", [MIXES[0], MIXES[3]])
def test_it_goes_on_from_any_step(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate, mix: dict[str, Any]) -> None:
    asked = recipe(both(tmp_path), streaming=True, **mix)
    whole = list(steps(asked, tokenizer, chatml))
    for step in range(STEPS - 1):
        cursor = json.loads(json.dumps(whole[step][1]))
        rest = list(steps(asked, tokenizer, chatml, begin=step + 1, cursor=cursor))
        assert [batch for batch, _ in rest] == [batch for batch, _ in whole[step + 1 :]], step
        assert [after["counts"] for _, after in rest if after] == [after["counts"] for _, after in whole[step + 1 :] if after], (
            step
        )


def test_what_was_learnt_is_not_read_again(
    tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 600 rows in three files, a resumed stream reads what is left of one window, and what it looks ahead."""
    from luthier.data import read_json, stream

    monkeypatch.setattr(stream, "AHEAD", 2_000)
    for number in range(3):
        written(tmp_path / "parts" / f"{number}.jsonl", rows(200, f"word{number}"))
    asked = recipe([str(tmp_path / "parts")], streaming=True, order="window(10)")
    whole = list(steps(asked, tokenizer, chatml, count=140))
    read: list[str] = []
    parse = read_json._parse_line
    monkeypatch.setattr(read_json, "_parse_line", lambda line: read.append(line) or parse(line))
    later = steps(asked, tokenizer, chatml, begin=120, cursor=whole[119][1], count=140)
    assert [batch for batch, _ in later] == [batch for batch, _ in whole[120:]]
    seen = {line.split("?")[0] for line in read}
    assert not [line for line in seen if "word0" in line or "word1" in line]
    assert min(int(line.rsplit(" ", 1)[1]) for line in seen) >= 69, "480 examples were learnt from, 400 of them in two files"


def test_what_was_used_is_counted_for_each_source(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    bad = [*rows(3, "cat"), {"instruction": "q"}, {"instruction": "q", "output": "word " * 90}, *rows(2, "cow")]
    sources = [written(tmp_path / "bad.jsonl", bad), written(tmp_path / "good.jsonl", rows(5, "dog"))]
    asked = recipe(sources, streaming=True, on_error="skip", max_length=40)
    dataset = prepare(asked, tokenizer, chatml)
    batches = batches_of(dataset, asked, (11, None))
    assert isinstance(batches, StreamBatches)
    assert batches(0).units == 11
    report = batches.used(dataset.report)
    batches.close()
    first, second = report.sources
    assert (first.rows, first.examples, first.skipped, first.truncated) == (7, 6, 1, 1)
    assert (second.rows, second.examples, second.skipped) == (5, 5, 0)
    assert "11 examples" in report.lines()[0]


def test_a_bad_row_is_told_when_it_is_met(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    file = written(tmp_path / "a.jsonl", [*rows(3, "cat"), {"instruction": "q"}])
    with pytest.raises(UserError, match=r"a.jsonl:4: missing `output`"):
        list(steps(recipe([file], streaming=True), tokenizer, chatml))


def test_a_source_that_has_changed_is_told(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    for name in ("a", "b"):
        written(tmp_path / "parts" / f"{name}.jsonl", rows(8, name))
    asked = recipe([str(tmp_path / "parts")], streaming=True)
    cursor = list(steps(asked, tokenizer, chatml, count=3))[-1][1]
    (tmp_path / "parts" / "a.jsonl").rename(tmp_path / "parts" / "c.jsonl")
    with pytest.raises(UserError, match="the source has changed"):
        list(steps(asked, tokenizer, chatml, begin=3, cursor=cursor))


def test_far_files_are_read_where_they_lie(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    """Lines, packed lines and parquet: the same batches as from this disk, from any step on, and no copy is kept."""
    here, far = tmp_path / "here", fsspec.filesystem("memory")
    for number, name in enumerate(("a.jsonl", "b.jsonl.gz", "c.parquet")):
        here.mkdir(exist_ok=True)
        with RowWriter(here / name) as writer:
            for row in rows(9, f"word{number}"):
                writer.write(row)
        far.pipe(f"/far/{name}", (here / name).read_bytes())
    stored = [batch for batch, _ in steps(recipe([str(here)]), tokenizer, chatml)]
    asked = recipe(["memory://far"], streaming=True)
    whole = list(steps(asked, tokenizer, chatml))
    assert [batch for batch, _ in whole] == stored
    for step in (2, 4, 6):
        cursor = json.loads(json.dumps(whole[step][1]))
        assert [batch for batch, _ in steps(asked, tokenizer, chatml, begin=step + 1, cursor=cursor)] == stored[step + 1 :]
    assert not (tmp_path / "cache/downloads").exists()
    batches = batches_of(prepare(asked, tokenizer, chatml), asked, (4, None))
    drawn = batches(0)
    batches.close()
    assert re.fullmatch(r"memory://.*far/a\.jsonl:\d", drawn.store.origin(0))


def test_a_far_file_of_another_content_is_told(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    far = fsspec.filesystem("memory")
    for word in ("cat", "dog"):
        far.pipe("/changed/a.jsonl", Path(written(tmp_path / f"{word}.jsonl", rows(20, word))).read_bytes())
        _far_parts.cache_clear()
        asked = recipe(["memory://changed/a.jsonl"], streaming=True)
        if word == "cat":
            cursor = list(steps(asked, tokenizer, chatml, count=3))[-1][1]
    with pytest.raises(UserError, match=r"the run stood in `.*a\.jsonl`, which has another content now"):
        list(steps(asked, tokenizer, chatml, begin=3, cursor=cursor))


@pytest.mark.parametrize(
    ("data", "train", "said"),
    [
        ({}, {}, "needs `train.max_steps`"),
        ({"validation": 0.1}, {"max_steps": 3}, "should be a file"),
        ({"train": [{"path": "a.jsonl", "validation": 5}]}, {"max_steps": 3}, "should be a file"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(data: dict[str, Any], train: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate({"model": "tiny", "data": {"train": ["a.jsonl"], "streaming": True, **data}, "train": train})
