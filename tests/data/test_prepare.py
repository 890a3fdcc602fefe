"""From files to units: what is counted, what is held out, and when a store is made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.chat import ChatTemplate, resolve
from luthier.data.batch import GlobalBatches
from luthier.data.prepare import Dataset, prepare
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.data.units import Units
from luthier.errors import UserError
from luthier.recipe.schema import Recipe


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> Tokenizer:
    return load_tokenizer(shared / "data/tokenizers/minimind")


@pytest.fixture(scope="module")
def chatml(tokenizer: Tokenizer) -> ChatTemplate:
    return resolve("chatml", None, tokenizer.variables)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))


def rows(count: int, word: str = "answer") -> list[dict[str, str]]:
    return [{"instruction": f"question {number}", "output": f"{word} {number}"} for number in range(count)]


def written(path: Path, content: Any) -> str:
    path.write_text("\n".join(json.dumps(row) for row in content), encoding="utf-8")
    return str(path)


def recipe(train: Any, *, stage: str = "sft", seed: int = 42, **data: Any) -> Recipe:
    return Recipe.model_validate({"model": "tiny", "stage": stage, "data": {"train": train, **data}, "train": {"seed": seed}})


def examples(dataset: Dataset, units: Units | None) -> list[int]:
    """The example of each unit, which must be one."""
    assert units is not None
    of = [set(dataset.store.example[units[unit]].tolist()) for unit in range(len(units))]
    assert all(len(one) == 1 for one in of)
    return [one.pop() for one in of]


def drawn(dataset: Dataset, epoch: int = 0, seed: int = 42) -> list[int]:
    """The examples of an epoch, as a run would draw them."""
    of = examples(dataset, dataset.train)
    return [of[unit] for unit in GlobalBatches(dataset.store, dataset.train, seed=seed, batch_size=4).epoch(epoch)]


def test_rows_become_segments_in_order(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    files = [written(tmp_path / "a.jsonl", rows(3)), written(tmp_path / "b.jsonl", rows(2, "reply"))]
    seen: list[tuple[str, int, int]] = []
    dataset = prepare(recipe(files), tokenizer, chatml, progress=lambda *state: seen.append(state))
    store = dataset.store
    texts = [tokenizer.decode(store.segment(index)[0]) for index in range(len(store))]
    assert [text.strip().split("\n")[-1] for text in texts] == ["answer 0", "answer 1", "answer 2", "reply 0", "reply 1"]
    assert store.example.tolist() == [0, 1, 2, 3, 4]
    assert store.source.tolist() == [0, 0, 0, 1, 1]
    assert store.line.tolist() == [1, 2, 3, 1, 2]
    assert len(set(store.group.tolist())) == 5
    assert store.origin(4).endswith("b.jsonl:2")
    assert examples(dataset, dataset.train) == [0, 1, 2, 3, 4]
    assert dataset.validation is None
    assert seen[-1] == ("tokenising", 5, 5)
    report = dataset.report
    assert (report.rows, report.examples, report.segments, report.skipped, report.train) == (5, 5, 5, 0, 5)
    assert report.tokens == len(store.tokens)
    assert report.supervised == int((np.asarray(store.weight) != 0).sum()) > 0
    assert "5 examples" in report.lines()[0]


def test_the_second_time_the_store_is_there(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    file = written(tmp_path / "a.jsonl", rows(10))
    first = prepare(recipe([file]), tokenizer, chatml)
    again = prepare(recipe([file], validation=2, packing=False, workers=1), tokenizer, chatml)
    weighted = prepare(recipe([{"path": file, "weight": 2}], seed=7), tokenizer, chatml)
    copy = prepare(recipe([written(tmp_path / "copy.jsonl", rows(10))]), tokenizer, chatml)
    assert (first.report.cached, again.report.cached, weighted.report.cached, copy.report.cached) == (False, True, True, True)
    assert first.store.key == again.store.key == weighted.store.key == copy.store.key


def test_a_store_from_the_cache_calls_the_files_by_their_names_of_today(
    tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate
) -> None:
    prepare(recipe([written(tmp_path / "a.jsonl", rows(3))]), tokenizer, chatml)
    copy = prepare(recipe([written(tmp_path / "copy.jsonl", rows(3))]), tokenizer, chatml)
    assert copy.report.cached
    assert copy.store.origin(1).endswith("copy.jsonl:2")


def test_rows_are_told_by_their_own_file(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for number in (1, 2):
            written(tmp_path / name / f"{name}{number}.jsonl", rows(number))
    (tmp_path / "rows.py").write_text("def load():\n    yield {'instruction': 'q', 'output': 'a'}\n")
    sources = [str(tmp_path / "one"), {"python": f"{tmp_path / 'rows.py'}:load"}]
    first = prepare(recipe(sources), tokenizer, chatml).store
    assert [Path(first.origin(index)).name for index in range(len(first))] == [
        "one1.jsonl:1",
        "one2.jsonl:1",
        "one2.jsonl:2",
        "rows.py:1",
    ]
    again = prepare(recipe([str(tmp_path / "two"), sources[1]]), tokenizer, chatml)
    assert again.report.cached
    assert [Path(again.store.origin(index)).name for index in (2, 3)] == ["two2.jsonl:2", "rows.py:1"]
    pinned = prepare(recipe([str(tmp_path / "gone"), sources[1]]), tokenizer, chatml, pinned=first.key).store
    assert [Path(pinned.origin(index)).name for index in (2, 3)] == ["one2.jsonl:2", "rows.py:1"]


def test_empty_answers_and_control_tokens_are_told_with_their_first_place(
    tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate
) -> None:
    content = [*rows(2), {"instruction": "q", "output": ""}, {"instruction": "What is <|im_end|>?", "output": "a"}]
    file = written(tmp_path / "a.jsonl", [*content, *content])
    for cached in (False, True):
        report = prepare(recipe([file]), tokenizer, chatml).report
        assert (report.cached, report.empty, report.letters) == (cached, 2, 2)
        told = "\n".join(report.lines())
        assert "the model learns to say nothing: 2 of 8 (25.0%) examples, first at " in told
        assert "a.jsonl:3 (`luthier data check --fix`)" in told
        assert "read as letters: 2 of 8 (25.0%) examples, first at " in told
        assert "a.jsonl:4 (data.control_tokens)" in told
    meant = prepare(recipe([file], control_tokens="tokens"), tokenizer, chatml).report
    assert (meant.empty, meant.letters) == (2, 0)
    assert meant.tokens < report.tokens


def test_skipped_rows_are_named_also_when_the_store_is_in_the_cache(
    tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate
) -> None:
    file = written(tmp_path / "a.jsonl", [*rows(2), {"instruction": "q"}, {"instruction": "q"}, {"output": "a"}])
    for cached in (False, True):
        report = prepare(recipe([file], on_error="skip"), tokenizer, chatml).report
        assert (report.cached, report.skipped, report.rows) == (cached, 3, 5)
        assert report.lines()[-3:] == [
            "bad rows skipped: 3 of 5 (60.0%) (data.on_error: skip)",
            f"  {file}:3: missing `output` (2 rows: lines 3–4)",
            f"  {file}:5: missing `instruction`",
        ]


@pytest.mark.parametrize(
    "change", [{"max_length": 500}, {"truncate": "start"}, {"train_on": "last"}, {"system": "Be brief."}, {"on_error": "skip"}]
)
def test_what_decides_the_tokens_makes_another_store(
    tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate, change: dict[str, Any]
) -> None:
    file = written(tmp_path / "a.jsonl", rows(3))
    assert prepare(recipe([file]), tokenizer, chatml).store.key != prepare(recipe([file], **change), tokenizer, chatml).store.key


def test_content_tokenizer_and_template_make_another_store(
    tmp_path: Path, shared: Path, tokenizer: Tokenizer, chatml: ChatTemplate
) -> None:
    file = written(tmp_path / "a.jsonl", rows(3))
    other = load_tokenizer(shared / "data/tokenizers/torchtitan_test")
    keys = [prepare(recipe([file]), *parts).store.key for parts in ((tokenizer, chatml), (other, chatml))]
    keys.append(prepare(recipe([file]), tokenizer, resolve("alpaca", None, tokenizer.variables)).store.key)
    written(tmp_path / "a.jsonl", rows(3, "anders"))
    keys.append(prepare(recipe([file]), tokenizer, chatml).store.key)
    assert len(set(keys)) == 4


def test_validation_is_split_by_example_and_seed(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    file = written(tmp_path / "a.jsonl", rows(40))
    share = prepare(recipe([file], validation=0.25), tokenizer, chatml)
    count = prepare(recipe([file], validation=10), tokenizer, chatml)
    other = prepare(recipe([file], validation=10, seed=1), tokenizer, chatml)
    held = examples(share, share.validation)
    assert len(held) == 10
    assert sorted(held + examples(share, share.train)) == list(range(40))
    assert examples(count, count.validation) == held
    assert examples(other, other.validation) != held
    assert (share.report.train, share.report.validation) == (30, 10)


def test_validation_does_not_depend_on_what_is_cut(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    file = written(tmp_path / "a.jsonl", [{"instruction": "q", "output": "word " * number} for number in range(1, 41)])
    wide = prepare(recipe([file], validation=10), tokenizer, chatml)
    narrow = prepare(recipe([file], validation=10, max_length=30, truncate="drop"), tokenizer, chatml)
    assert narrow.report.dropped > 5
    assert set(examples(narrow, narrow.validation)) < set(examples(wide, wide.validation))
    assert not set(examples(narrow, narrow.train)) & set(examples(wide, wide.validation))


def test_validation_from_a_file(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    train, held = written(tmp_path / "a.jsonl", rows(4)), written(tmp_path / "v.jsonl", rows(2, "held"))
    dataset = prepare(recipe([train], validation=held), tokenizer, chatml)
    assert examples(dataset, dataset.train) == [0, 1, 2, 3]
    assert examples(dataset, dataset.validation) == [4, 5]
    assert dataset.store.header.sources[1].split == "validation"


@pytest.mark.parametrize("wanted", [4, 5, 0.95])
def test_impossible_validation_is_refused(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate, wanted: float) -> None:
    with pytest.raises(UserError, match="leave nothing to train on"):
        prepare(recipe([written(tmp_path / "a.jsonl", rows(4))], validation=wanted), tokenizer, chatml)


def test_weights_repeat_and_subsample(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    sources = [
        {"path": written(tmp_path / "a.jsonl", rows(10)), "weight": 2.5},
        {"path": written(tmp_path / "b.jsonl", rows(10, "reply")), "weight": 0.3},
        {"path": written(tmp_path / "c.jsonl", rows(10, "word")), "max_examples": 4},
    ]
    dataset = prepare(recipe(sources), tokenizer, chatml)
    seen = np.bincount(drawn(dataset), minlength=24)
    assert sorted(seen[:10].tolist()) == [2] * 5 + [3] * 5
    assert sorted(seen[10:20].tolist()) == [0] * 7 + [1] * 3
    assert seen[20:].tolist() == [1] * 4
    assert dataset.report.train == 32
    assert [source.train for source in dataset.report.sources] == [25, 3, 4]
    both = seen + np.bincount(drawn(dataset, 1), minlength=24)
    assert set(both[:10].tolist()) == {5}, "what the first epoch left out, the second takes"
    held = prepare(recipe(sources, validation=6), tokenizer, chatml)
    assert not set(examples(held, held.train)) & set(examples(held, held.validation))


def test_each_source_has_a_validation_set(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    a, b, c = (written(tmp_path / f"{name}.jsonl", rows(count)) for name, count in (("a", 40), ("b", 10), ("c", 8)))
    shares = prepare(recipe([a, b], validation=0.1), tokenizer, chatml)
    assert [(source.name, source.train, source.validation) for source in shares.report.sources] == [("a", 36, 4), ("b", 9, 1)]
    own = prepare(recipe([a, {"path": b, "validation": 3}, {"path": c, "validation": 0}], validation=0.1), tokenizer, chatml)
    assert [source.validation for source in own.report.sources] == [4, 3, 0]
    assert not set(examples(own, own.train)) & set(examples(own, own.validation))
    together = prepare(recipe([a, {"path": b, "validation": 3}, c], validation=6), tokenizer, chatml)
    held = [source.validation for source in together.report.sources]
    assert held[1] == 3
    assert held[0] + held[2] == 6
    alone = prepare(recipe([{"path": a, "validation": 0.25}]), tokenizer, chatml)
    assert examples(alone, alone.validation) == examples(
        *[(d := prepare(recipe([a], validation=10), tokenizer, chatml)), d.validation]
    )


def test_a_cap_by_tokens_takes_the_first(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    file = written(tmp_path / "a.jsonl", rows(20))
    whole = prepare(recipe([file]), tokenizer, chatml)
    lengths = whole.store.lengths
    for most, count in ((int(lengths[:7].sum()), 7), (int(lengths[:7].sum()) - 1, 6), (1, 1), (10**9, 20)):
        capped = prepare(recipe([{"path": file, "max_tokens": most}]), tokenizer, chatml)
        assert examples(capped, capped.train) == list(range(count))
        assert capped.store.key == whole.store.key


def test_every_source_is_counted_apart(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    turns = [{"role": role, "content": f"{role} {n} " + "word " * 10} for n in range(4) for role in ("user", "assistant")]
    long = [{"messages": turns}, {"messages": [turns[0], {"role": "assistant", "content": "word " * 90}]}]
    files = [written(tmp_path / "long.jsonl", long), written(tmp_path / "bad.jsonl", [*rows(3), {"instruction": "q"}])]
    dataset = prepare(recipe(files, max_length=64, on_error="skip"), tokenizer, chatml)
    first, second = dataset.report.sources
    assert (first.rows, first.examples, first.shortened, first.truncated, first.skipped) == (2, 2, 1, 1, 0)
    assert first.turns == 3
    assert (second.rows, second.examples, second.shortened, second.truncated, second.skipped) == (4, 3, 0, 0, 1)
    for name in ("rows", "examples", "segments", "tokens", "supervised", "truncated", "shortened", "turns", "skipped", "train"):
        assert getattr(dataset.report, name) == getattr(first, name) + getattr(second, name), name
    text = "\n".join(dataset.report.lines())
    assert "1 of 5 (20.0%) examples lost their oldest exchanges, 3 in all" in text
    assert "long: 2 examples" in text
    assert "1 bad" in text


def test_an_unrolled_conversation_is_one_unit_of_several_segments(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A:{% if loop.last %}{{ m.content }}{% else %}"
        "{{ m.content.split('</think>')[-1] }}{% endif %}<|im_end|>{% else %}U:{{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    template = ChatTemplate("forgetful", source, tokenizer.variables)
    turns = [("user", "a"), ("assistant", "<think>hm</think>b"), ("user", "c"), ("assistant", "<think>so</think>d")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    dataset = prepare(recipe([written(tmp_path / "a.jsonl", [row, row])]), tokenizer, template)
    assert len(dataset.train) == 2
    assert [len(dataset.train[unit]) for unit in range(2)] == [2, 2]
    assert dataset.report.rungs == {"unrolled": 4}
    learnt = [
        tokenizer.decode(tokens[weight != 0], skip_special=False) for tokens, weight in map(dataset.store.segment, range(2))
    ]
    assert learnt == ["<think>hm</think>b<|im_end|>", "<think>so</think>d<|im_end|>"]


def test_documents_are_units_by_chunk(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = written(tmp_path / "a.jsonl", [{"text": "One two three. " * 30}, {"text": "Four."}])
    dataset = prepare(recipe([file], stage="pt", max_length=32), tokenizer, None)
    chunks = len(dataset.store)
    assert chunks > 3
    assert len(dataset.train) == chunks
    assert dataset.train.segments.tolist() == list(range(chunks))
    assert dataset.store.example.tolist() == [0] * (chunks - 1) + [1]
    assert int(dataset.store.lengths.max()) == 32
    held = prepare(recipe([file], stage="pt", max_length=32, validation=1), tokenizer, None)
    assert held.validation is not None
    assert len(held.train) + len(held.validation) == chunks
    assert len(set(held.store.example[held.validation.segments].tolist())) == 1, "a document is held out whole"


BAD = [
    '{"instruction": "q", "output": "a"}',
    '{"instruction": "q"}',
    "{broken",
    '{"instruction": "q", "output": "fine"}',
    '{"instruction": "half \\ud83d", "output": "a"}',
]


def test_bad_rows_are_all_told_with_their_lines(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(BAD))
    with pytest.raises(UserError) as error:
        prepare(recipe([str(tmp_path / "a.jsonl")]), tokenizer, chatml)
    for line in (2, 3, 5):
        assert f"a.jsonl:{line}: " in str(error.value)
    assert "a.jsonl:4" not in str(error.value)
    assert not list((tmp_path / "cache/stores").glob("*/*columns*")), "nothing is left of a build that failed"


def test_bad_rows_are_skipped_and_counted(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(BAD))
    for cached in (False, True):
        dataset = prepare(recipe([str(tmp_path / "a.jsonl")], on_error="skip"), tokenizer, chatml)
        report = dataset.report
        assert (report.cached, report.rows, report.skipped, len(dataset.train)) == (cached, 5, 3, 2)
        assert dataset.store.line.tolist() == [1, 4]
        assert any("bad rows skipped: 3 of 5" in line for line in report.lines())


def test_cut_and_dropped_are_counted(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    long = {"instruction": "q", "output": "word " * 200}
    hopeless = {"instruction": "word " * 200, "output": "a"}
    file = written(tmp_path / "a.jsonl", [*rows(3), long, hopeless])
    cut = prepare(recipe([file], max_length=64), tokenizer, chatml).report
    assert (cut.truncated, cut.dropped, cut.segments) == (1, 1, 4)
    dropped = prepare(recipe([file], max_length=64, truncate="drop"), tokenizer, chatml).report
    assert (dropped.truncated, dropped.dropped, dropped.segments) == (0, 2, 3)
    assert any("2 of 5 (40.0%)" in line for line in dropped.lines())
    with pytest.raises(UserError, match=r"5 of 5 are too long for `data.max_length: 4`"):
        prepare(recipe([file], max_length=4), tokenizer, chatml)


def test_a_resumed_run_keeps_the_store_it_began_with(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    file, run = written(tmp_path / "a.jsonl", rows(5)), tmp_path / "runs/first"
    run.mkdir(parents=True)
    first = prepare(recipe([file]), tokenizer, chatml, run=run)
    written(tmp_path / "a.jsonl", rows(6))
    pinned = prepare(recipe([file]), tokenizer, chatml, pinned=first.store.key, run=run)
    assert (pinned.store.key, len(pinned.train)) == (first.store.key, 5)
    with pytest.raises(UserError, match="changed since the run began"):
        prepare(recipe([file]), tokenizer, chatml, pinned="gone")
    (tmp_path / "a.jsonl").unlink()
    assert prepare(recipe([file]), tokenizer, chatml, pinned=first.store.key).store.key == first.store.key


def test_a_missing_file_is_told(tmp_path: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    with pytest.raises(UserError, match=r"absent.json: no such file"):
        prepare(recipe([str(tmp_path / "absent.json")]), tokenizer, chatml)


def test_each_row_has_the_tokens_it_would_have_alone(shared: Path, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    file = shared / "data/llamafactory/alpaca_zh_demo.json"
    store = prepare(recipe([{"path": str(file), "max_examples": 200}]), tokenizer, chatml).store
    for index in (0, 7, 111, 199):
        row = json.loads(file.read_text())[index]
        question = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
        text = chatml.render([{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}])
        assert store.segment(index)[0].tolist() == tokenizer.encode(text).ids.tolist()[:1024]
