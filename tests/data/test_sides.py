"""Pairs, feedback and prompts in the store: what is scored of them, what stays together, what is taken instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.data.batch import lay_out
from luthier.data.examples import Conversation, Feedback, Origin, Preference, Prompt
from luthier.data.prepare import Dataset
from luthier.data.wanted import WANTED
from luthier.errors import UserError
from luthier.recipe.load import recipe_from
from luthier.workshop.assembly import prepare_data

PAIR = {
    "conversations": [{"from": "human", "value": "Which is larger, 3 or 5?"}],
    "chosen": {"from": "gpt", "value": "5 is larger."},
    "rejected": {"from": "gpt", "value": "3."},
}


def prepared(folder: Path, rows: list[Any], stage: str, **data: Any) -> tuple[Any, Dataset]:
    (folder / "rows.json").write_text(json.dumps(rows))
    section = {"train": [str(folder / "rows.json")], "max_length": 64, **data}
    tokenizer, _, dataset = prepare_data(recipe_from({"model": "tiny", "data": section, "stage": stage}, folder))
    return tokenizer, dataset


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def scored(tokenizer: Any, dataset: Dataset, segment: int) -> str:
    tokens, weight = dataset.store.segment(segment)
    return str(tokenizer.decode(tokens[weight > 0].tolist(), skip_special=False))


def test_a_pair_is_two_segments_of_one_group_and_only_answers_are_scored(tmp_path: Path) -> None:
    tokenizer, dataset = prepared(tmp_path, [PAIR, PAIR | {"chosen": {"from": "gpt", "value": "Five."}}], "dpo")
    store = dataset.store
    assert store.label.tolist() == [1, 0, 1, 0]
    assert store.group.tolist() == [0, 0, 2, 2]
    assert len(dataset.train) == 2
    assert [scored(tokenizer, dataset, row).strip() for row in range(4)] == [
        f"{text}<|im_end|>" for text in ("5 is larger.", "3.", "Five.", "3.")
    ]


def test_earlier_answers_of_a_pair_are_not_scored(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}, *PAIR["conversations"]]
    tokenizer, dataset = prepared(tmp_path, [PAIR | {"conversations": turns}], "dpo")
    assert "Hello" not in scored(tokenizer, dataset, 0)
    assert "Hello" in tokenizer.decode(dataset.store.segment(0)[0].tolist())


def test_both_sides_lose_the_same_exchanges(tmp_path: Path) -> None:
    long = [turn for n in range(6) for turn in ({"from": "human", "value": f"Say {n}."}, {"from": "gpt", "value": f"It is {n}."})]
    row = PAIR | {"conversations": [*long, *PAIR["conversations"]], "chosen": {"from": "gpt", "value": "5 " * 20}}
    tokenizer, dataset = prepared(tmp_path, [row], "dpo", max_length=96)
    chosen, rejected = (tokenizer.decode(dataset.store.segment(side)[0].tolist()) for side in (0, 1))
    assert dataset.report.shortened == 1
    assert dataset.store.lengths[1] < 64  # alone, the short side would have kept more
    assert [f"Say {n}" in chosen for n in range(6)] == [f"Say {n}" in rejected for n in range(6)]


def test_a_pair_of_which_one_side_loses_its_answer_is_left_out_whole(tmp_path: Path) -> None:
    long = {"conversations": [{"from": "human", "value": "Why? " * 80}]}
    _, dataset = prepared(tmp_path, [PAIR, PAIR | long], "dpo")
    assert (len(dataset.train), dataset.report.dropped) == (1, 1)


def test_pairs_become_opinions(tmp_path: Path) -> None:
    pair = Preference(({"role": "user", "content": "q"},), (answer("a"),), (answer("b"),), Origin("f", 1, 0))
    liked, disliked = WANTED["kto"].of(pair)
    assert isinstance(liked, Feedback)
    assert isinstance(disliked, Feedback)
    assert (liked.messages[-1], liked.label) == (answer("a"), True)
    assert (disliked.messages[-1], disliked.label) == (answer("b"), False)


def test_a_conversation_becomes_a_prompt_with_its_last_answer_as_reference() -> None:
    talk = Conversation(({"role": "user", "content": "1+1?"}, answer("2")), Origin("f", 1, 0))
    (prompt,) = WANTED["grpo"].of(talk)
    assert isinstance(prompt, Prompt)
    assert prompt.messages == talk.messages[:1]
    assert prompt.reference == "2"


def test_what_a_stage_cannot_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage `dpo` learns from preference pairs"):
        prepared(tmp_path, [{"instruction": "q", "output": "a"}], "dpo")


def test_segments_of_a_pair_are_never_parted(tmp_path: Path) -> None:
    _, dataset = prepared(tmp_path, [PAIR] * 7, "dpo")
    rows = np.arange(14)
    for passes in lay_out(rows, dataset.store.lengths, dataset.store.group, micro_batch_tokens=90, ranks=2):
        assert all(sorted(dataset.store.label[found].tolist()) == sorted([0, 1] * (len(found) // 2)) for found in passes)
