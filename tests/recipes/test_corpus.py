"""The corpus takes permissive texts alone, half of each language, and thanks them."""

from __future__ import annotations

import gzip
import json

import pytest


@pytest.fixture
def corpus(script):
    return script("corpus")


@pytest.fixture
def folder(corpus, tmp_path):
    """A folder with all texts of the selection, 4 kB each, and their SOURCES.md."""
    texts = tmp_path / "full"
    texts.mkdir()
    rows = ["| name | docs | MB | lang | licence | source |", "|---|---|---|---|---|---|"]
    for text in corpus.SELECTION:
        blocks = [
            f"{text.name} {number}. " + ("很久以前。" if text.language == "zh" else "Once upon a time.") for number in range(100)
        ]
        with gzip.open(texts / f"{text.name}.txt.gz", "wt", encoding="utf-8") as file:
            file.write("\n\n".join(blocks))
        rows.append(f"| {text.name} | 1 | 0.1 | {text.language} | CC BY 4.0 (per-story) | example.org/{text.name} |")
    (tmp_path / "SOURCES.md").write_text("\n".join(rows), "utf-8")
    return texts


def test_texts_are_shared_out_by_language(corpus, folder):
    chosen, report = corpus.collect(folder, budget=6000, seed=1)
    given = {"en": 0, "zh": 0}
    for text, _, count in report:
        for language in corpus.languages(text):
            given[language] += count // len(corpus.languages(text))
    assert len(report) == len(corpus.SELECTION)
    assert corpus.size(chosen) == sum(count for _, _, count in report)
    assert all(4500 < count <= 6000 for count in given.values()), given


def test_same_seed_same_corpus(corpus, folder):
    assert corpus.collect(folder, 6000, seed=1)[0] == corpus.collect(folder, 6000, seed=1)[0]


@pytest.mark.parametrize("licence", ["CC BY-SA 4.0", "CC BY-NC 4.0", "research only", "no licence"])
def test_a_text_that_may_not_be_used_stops_it(corpus, folder, licence):
    page = folder.parent / "SOURCES.md"
    page.write_text(
        page.read_text("utf-8").replace("CC BY 4.0 (per-story) | example.org/gutenberg_grimm", f"{licence} | example.org/x")
    )
    with pytest.raises(SystemExit, match="gutenberg_grimm"):
        corpus.collect(folder, 6000, seed=1)


def test_no_licences_no_corpus(corpus, folder):
    (folder.parent / "SOURCES.md").unlink()
    with pytest.raises(SystemExit, match="no licence is known"):
        corpus.collect(folder, 6000, seed=1)


def test_attribution_names_texts_and_authors(corpus, folder, tmp_path):
    (tmp_path / "stories_en.jsonl").write_text(json.dumps({"author": "Ursula Nafula", "text": "…"}) + "\n")
    corpus.main(["--text", str(folder), "--megabytes", "0.006", str(tmp_path / "out/corpus.jsonl")])
    page = (tmp_path / "out/ATTRIBUTION.md").read_text("utf-8")
    assert all(f"| {text.name} | CC BY 4.0 (per-story) | example.org/{text.name} |" in page for text in corpus.SELECTION)
    assert "Ursula Nafula" in page
    rows = [json.loads(line) for line in (tmp_path / "out/corpus.jsonl").read_text("utf-8").split("\n") if line]
    assert all(row.keys() == {"text"} and row["text"] for row in rows)


def test_held_out_documents_are_not_in_the_corpus(corpus, folder, tmp_path):
    corpus.main(["--text", str(folder), "--megabytes", "1", str(tmp_path / "corpus.jsonl")])
    kept = {json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").read_text("utf-8").split("\n") if line}
    lines = (tmp_path / "corpus_heldout.jsonl").read_text("utf-8").split("\n")
    held_out = [json.loads(line) for line in lines if line]
    assert {row["language"] for row in held_out} == {"en", "zh"}
    assert not kept & {row["text"] for row in held_out}
    assert len(held_out) < 0.1 * len(kept)


def test_traditional_script_is_left_out(corpus):
    pairs = next(text for text in corpus.SELECTION if text.split == "pairs")
    import random

    kept = "".join(corpus.documents(pairs, "Hi.\n你好。\n\nListen.\n聽著。", random.Random(0)))
    assert "你好" in kept
    assert "聽" not in kept
