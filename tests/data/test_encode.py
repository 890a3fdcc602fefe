"""Weights per token from characters, and what each policy does with a segment that is too long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from luthier.chat import ChatTemplate, resolve
from luthier.data.encode import Encoder, Settings, weigh
from luthier.data.examples import Conversation, Document, Origin
from luthier.data.problems import RowError
from luthier.data.texts import joined
from luthier.data.tokenizer import Encoded, Tokenizer, load_tokenizer

HERE = Origin("rows.json", 1, 0)
LETTERS = Encoded(*(np.array(column, np.int32) for column in ([1, 2, 3, 4], [0, 2, 2, 5], [2, 2, 5, 6])))
"""Four tokens: two characters, none, three, one."""


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> Tokenizer:
    return load_tokenizer(shared / "data/tokenizers/minimind")


@pytest.fixture(scope="module")
def chatml(tokenizer: Tokenizer) -> ChatTemplate:
    return resolve("chatml", None, tokenizer.variables)


def conversation(*turns: str) -> Conversation:
    roles = ("user", "assistant") * len(turns)
    return Conversation(tuple({"role": role, "content": text} for role, text in zip(roles, turns, strict=False)), HERE)


def segments(tokenizer: Tokenizer, template: ChatTemplate | None, example: Conversation | Document, **settings: object) -> list:
    encoder = Encoder(tokenizer, template, Settings(**{"stage": "sft", "max_length": 1000, **settings}))  # type: ignore[arg-type]
    texts = encoder.texts(example)
    return encoder.pieces(texts, tokenizer.encode_batch([item.text for item in texts])) or []


def learnt(tokenizer: Tokenizer, piece: object) -> str:
    return tokenizer.decode(piece.tokens[piece.weight != 0], skip_special=False)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spans", "wanted"),
    [
        ([], [0, 0, 0, 0]),
        ([(0, 6, 1.0)], [1, 1, 1, 1]),
        ([(2, 5, 0.5)], [0, 0.5, 0.5, 0]),
        ([(1, 6, 1.0)], [0, 1, 1, 1]),
        ([(0, 4, 1.0)], [1, 1, 0, 0]),
        ([(0, 2, 1.0), (5, 6, 2.0)], [1, 0, 0, 2]),
        ([(0, 3, 1.0), (3, 6, 2.0)], [1, 1, 0, 2]),
    ],
)
def test_a_token_has_the_weight_of_the_span_that_holds_it_whole(spans: list, wanted: list[float]) -> None:
    assert weigh(LETTERS, spans).tolist() == wanted


def test_spans_that_touch_and_weigh_the_same_are_one() -> None:
    assert joined([(0, 3, 1.0), (3, 6, 1.0), (6, 7, 2.0), (8, 9, 2.0)]) == ((0, 6, 1.0), (6, 7, 2.0), (8, 9, 2.0))


@pytest.mark.parametrize("name", ["llama2", "internlm2", "qwen", "gpt2", "minimind"])
def test_the_mask_agrees_with_the_characters_whatever_the_tokenizer(shared: Path, name: str) -> None:
    """Token by token against the definition: learnt if and only if all of its characters are."""
    tokenizer = load_tokenizer(shared / "data/tokenizers" / name)
    template = resolve("alpaca", None, tokenizer.variables)
    encoder = Encoder(tokenizer, template, Settings("sft", 1000))
    (item,) = encoder.texts(conversation("你好 there?", " 世界 🦙  x", "and?", "yes\n"))
    encoded = tokenizer.encode(item.text)
    (piece,) = encoder.pieces([item], [encoded]) or []
    mask = np.zeros(len(item.text), bool)
    for begin, end, _ in item.spans:
        mask[begin:end] = True
    wanted = [bool(mask[a:b].all() if b > a else mask[a]) for a, b in zip(encoded.starts, encoded.ends, strict=True)]
    assert (piece.weight != 0).tolist() == wanted
    assert any(wanted)
    assert not all(wanted)


def test_whole_conversation_is_one_tokenisation_of_its_text(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    example = conversation("What is it?", "A cat.", "And this?", "A dog.")
    (piece,) = segments(tokenizer, chatml, example)
    assert piece.tokens.tolist() == tokenizer.encode(chatml.render(example.messages)).ids.tolist()
    assert learnt(tokenizer, piece) == "A cat.<|im_end|>A dog.<|im_end|>"
    assert not piece.truncated


def test_train_on_chooses_the_answers(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    example = conversation("Q", "one", "Q", "two")
    (last,) = segments(tokenizer, chatml, example, train_on="last")
    (everything,) = segments(tokenizer, chatml, example, train_on="all")
    assert learnt(tokenizer, last) == "two<|im_end|>"
    assert everything.weight[1:].all()
    assert everything.weight[0] == 0, "nothing comes before the first token"


def test_message_weights_are_kept(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    example = conversation("Q", "one", "Q", "two")
    example.messages[1]["weight"], example.messages[3]["weight"] = 0, 0.5
    (piece,) = segments(tokenizer, chatml, example)
    assert learnt(tokenizer, piece) == "two<|im_end|>"
    assert set(piece.weight.tolist()) == {0.0, 0.5}


def test_cut_at_the_end_an_answer_has_no_end_of_turn(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    example = conversation("Count.", "one two three four five six seven eight")
    (whole,) = segments(tokenizer, chatml, example)
    end = int(tokenizer.encode("<|im_end|>").ids[0])
    for limit in range(len(whole.tokens) - 4, len(whole.tokens)):
        (piece,) = segments(tokenizer, chatml, example, max_length=limit)
        assert piece.tokens.tolist() == whole.tokens[:limit].tolist()
        answer_is_whole = end in whole.tokens[:limit][whole.weight[:limit] != 0]
        assert piece.truncated
        assert learnt(tokenizer, piece).endswith("<|im_end|>") == answer_is_whole


def test_cut_at_the_start_the_cut_answer_is_not_taught_to_stop(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    example = conversation("Count.", "one two three four five six seven eight", "Again.", "nine ten")
    (whole,) = segments(tokenizer, chatml, example)
    inside = int(np.flatnonzero(whole.weight)[2])  # two tokens of the first answer are lost
    (piece,) = segments(tokenizer, chatml, example, truncate="start", max_length=len(whole.tokens) - inside)
    assert piece.tokens.tolist() == whole.tokens[inside:].tolist()
    assert learnt(tokenizer, piece).count("<|im_end|>") == 1
    assert learnt(tokenizer, piece).endswith("eightnine ten<|im_end|>")
    assert piece.weight[0] == 0


def test_cut_at_the_start_only_the_cut_answer_is_not_taught_to_stop_when_all_is_learnt(
    tokenizer: Tokenizer, chatml: ChatTemplate
) -> None:
    example = conversation("Count.", "one two three four five six seven eight", "Again.", "nine ten")
    (answers,) = segments(tokenizer, chatml, example)
    (whole,) = segments(tokenizer, chatml, example, train_on="all")
    inside = int(np.flatnonzero(answers.weight)[2])
    (piece,) = segments(tokenizer, chatml, example, train_on="all", truncate="start", max_length=len(whole.tokens) - inside)
    ends = np.flatnonzero(piece.tokens == tokenizer.encode("<|im_end|>").ids[0])
    assert piece.weight[ends].tolist() == [0, 1, 1]
    assert np.flatnonzero(piece.weight == 0).tolist() == [0, ends[0]]


def test_cut_at_the_start_between_answers_leaves_them_whole(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    example = conversation("Count.", "one two three", "Again.", "nine ten")
    (whole,) = segments(tokenizer, chatml, example)
    after = int(np.flatnonzero(np.diff((whole.weight != 0).astype(int)) == -1)[0]) + 1
    (piece,) = segments(tokenizer, chatml, example, truncate="start", max_length=len(whole.tokens) - after)
    assert learnt(tokenizer, piece) == "nine ten<|im_end|>"


def test_drop_leaves_the_example_out(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    example = conversation("Count.", "one two three")
    length = len(segments(tokenizer, chatml, example)[0].tokens)
    assert segments(tokenizer, chatml, example, truncate="drop", max_length=length - 1) == []
    assert len(segments(tokenizer, chatml, example, truncate="drop", max_length=length)) == 1


def test_a_cut_that_leaves_nothing_to_learn_leaves_the_example_out(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    assert segments(tokenizer, chatml, conversation("a long question " * 20, "short"), max_length=30) == []


def test_nothing_to_learn_from_the_beginning_is_a_mistake(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    with pytest.raises(RowError, match="no answer to learn"):
        segments(tokenizer, chatml, Conversation(({"role": "user", "content": "?"},), HERE))
    encoder = Encoder(tokenizer, chatml, Settings("sft", 100))
    (item,) = encoder.texts(conversation("Q", "answer"))
    narrow = item._replace(spans=((item.spans[0][0] + 1, item.spans[0][0] + 2, 1.0),))  # inside one token
    with pytest.raises(RowError, match="no token"):
        encoder.pieces([narrow], [tokenizer.encode(item.text)])


def test_half_a_character_is_a_mistake(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    with pytest.raises(RowError, match="surrogate"):
        segments(tokenizer, chatml, conversation("broken \ud83d", "answer"))


def test_documents_are_chunks_with_one_end(tokenizer: Tokenizer) -> None:
    document = Document("Once upon a time there was a tokenizer. " * 10, HERE)
    ids = [*tokenizer.encode(document.text).ids.tolist(), tokenizer.eos_id]
    pieces = segments(tokenizer, None, document, stage="pt", max_length=16)
    assert [token for piece in pieces for token in piece.tokens.tolist()] == ids[: sum(len(piece.tokens) for piece in pieces)]
    assert len(ids) - sum(len(piece.tokens) for piece in pieces) in (0, 1), "only a last chunk of one token is left out"
    assert all(len(piece.tokens) <= 16 for piece in pieces)
    assert all(piece.weight[0] == 0 and piece.weight[1:].all() for piece in pieces)


def test_documents_begin_as_the_tokenizer_begins_them(shared: Path) -> None:
    tokenizer = load_tokenizer(shared / "data/tokenizers/llama2")
    (piece,) = segments(tokenizer, None, Document("Hello world", HERE), stage="pt")
    assert piece.tokens.tolist() == [1, 15043, 3186, 2]
    with pytest.raises(RowError, match="empty"):
        segments(tokenizer, None, Document("", HERE), stage="pt")
