"""Signatures estimate similarity, near pairs are found and far ones are not, and the index stays within its bounds."""

from __future__ import annotations

import random

import numpy as np
import pytest

from luthier.data.doctor.alike import SHINGLE, THRESHOLD, Alike, _Near, signatures
from luthier.data.doctor.row import Row
from luthier.data.examples import Document, Origin

WORDS = [*"琴弓弦木声音松枫漆桥", "bridge", "bow", "string", "maple", "spruce", "tone", "rosin", "varnish", "neck", "scroll"]


def shingles(text: str) -> set[str]:
    return {text[i : i + SHINGLE] for i in range(len(text) - SHINGLE + 1)}


def similarity(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    """Texts, each with a copy in which some characters differ."""
    drawn = random.Random(3)
    made = []
    for _ in range(400):
        text = " ".join(drawn.choices(WORDS, k=60)) + str(drawn.random())
        changed = list(text)
        for _ in range(drawn.randrange(1, 26)):
            changed[drawn.randrange(len(changed))] = "#"
        made.append((text, "".join(changed)))
    return made


def test_signatures_estimate_the_jaccard_similarity(pairs: list[tuple[str, str]]) -> None:
    near = _Near()
    one, other = (signatures([pair[side] for pair in pairs], near._pattern.permutations) for side in (0, 1))
    errors = np.array([(a == b).mean() - similarity(*pair) for a, b, pair in zip(one, other, pairs, strict=True)])
    assert abs(errors.mean()) < 0.02  # unbiased
    assert errors.std() < 0.07  # √(s(1-s)/64) is 0.05 at 0.8


def test_a_signature_does_not_depend_on_its_neighbours(pairs: list[tuple[str, str]]) -> None:
    permutations = _Near()._pattern.permutations
    texts = [pair[0] for pair in pairs[:20]]
    alone = np.concatenate([signatures([text], permutations) for text in texts])
    assert (signatures(texts, permutations) == alone).all()


def test_near_pairs_are_found_and_far_ones_are_not(pairs: list[tuple[str, str]]) -> None:
    found = _Near().matches([text for pair in pairs for text in pair])
    near = [i for i, pair in enumerate(pairs) if similarity(*pair) >= THRESHOLD + 0.08]
    far = [i for i, pair in enumerate(pairs) if similarity(*pair) < THRESHOLD - 0.2]
    assert len(near) > 30
    assert len(far) > 20
    hits = sum(found[2 * i + 1] is not None and found[2 * i + 1][0] == 2 * i for i in near)  # type: ignore[index]
    assert hits >= 0.97 * len(near)
    assert not [i for i in far if found[2 * i + 1] is not None]
    assert not [i for i in range(len(pairs)) if found[2 * i] is not None]  # originals resemble nothing


def document(number: int, text: str) -> Row:
    origin = Origin("f.txt", number + 1, number)
    return Row(origin, {"text": text}, [Document(text, origin)])


@pytest.mark.parametrize(("bound", "attribute", "count"), [("INDEXED", "left_out", 6), ("REMEMBERED", "forgotten", 6)])
def test_bounds_are_kept_and_what_is_left_out_is_counted(
    monkeypatch: pytest.MonkeyPatch, pairs: list[tuple[str, str]], bound: str, attribute: str, count: int
) -> None:
    monkeypatch.setattr(f"luthier.data.doctor.alike.{bound}", 4)
    alike = Alike()
    rows = [document(number, text) for number, (text, _) in enumerate(pairs[:10])]
    alike(rows[:5])
    alike(rows[5:])
    assert getattr(alike, attribute) == count
