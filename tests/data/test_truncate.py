"""Whole exchanges are left out, the oldest first; LLaMA-Factory's counts are reproduced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from luthier.chat import ChatTemplate, resolve
from luthier.data.encode import Encoder, Piece, Settings
from luthier.data.examples import Conversation, Message, Origin
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.data.truncate import droppable, exchanges, fewest_dropped, infer_seqlen, shared_out, without_oldest

HERE = Origin("rows.json", 1, 0)
REWRITING = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' and not loop.last %}{{ message.content.split('</think>')[-1] }}{% else %}{{ message.content }}\
{% endif %}<|im_end|>
{% endfor -%}"""
"""Drops the thoughts of earlier answers, so that each answer becomes a segment of its own."""


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> Tokenizer:
    return load_tokenizer(shared / "data/tokenizers/minimind")


@pytest.fixture(scope="module")
def chatml(tokenizer: Tokenizer) -> ChatTemplate:
    return resolve("chatml", None, tokenizer.variables)


def messages(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple({"role": role, "content": text} for role, text in turns)


FIVE = messages(
    ("system", "Be brief."),
    *((role, f"{role} number {turn}, in a few words") for turn in range(5) for role in ("user", "assistant")),
)


def encoded(
    tokenizer: Tokenizer, template: ChatTemplate, said: tuple[Message, ...], **settings: object
) -> tuple[list[Piece], int]:
    encoder = Encoder(tokenizer, template, Settings("sft", **{"max_length": 1000, **settings}))  # type: ignore[arg-type]
    example = Conversation(said, HERE)
    texts = encoder.texts(example)
    shorter, tokens, turns = encoder.shortened(example, texts, tokenizer.encode_batch([item.text for item in texts]))
    return encoder.pieces(shorter, tokens) or [], turns


def said(tokenizer: Tokenizer, piece: Piece) -> str:
    return tokenizer.decode(piece.tokens, skip_special=False)


def learnt(tokenizer: Tokenizer, piece: Piece) -> str:
    return tokenizer.decode(piece.tokens[piece.weight != 0], skip_special=False)


def test_an_exchange_begins_with_a_question() -> None:
    roles = ["system", "assistant", "user", "user", "assistant", "tool", "assistant", "user", "assistant"]
    talk = messages(*((role, "x") for role in roles))
    assert exchanges(talk) == (1, [1, 2, 7])
    assert [message["role"] for message in without_oldest(talk, 1)] == [roles[0], *roles[2:]]
    assert [message["role"] for message in without_oldest(talk, 2)] == [roles[0], *roles[7:]]


def test_the_last_answer_to_learn_stays() -> None:
    assert droppable(FIVE) == 4
    assert droppable((*FIVE, {"role": "user", "content": "And?"})) == 4
    unlearnt = tuple(message | ({"weight": 0} if index > 4 else {}) for index, message in enumerate(FIVE))
    assert droppable(unlearnt) == 1
    assert droppable(FIVE[:2]) == 0


@pytest.mark.parametrize("excess", [0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("true", [1, 2, 3, 4])
def test_the_fewest_are_found_from_any_guess(excess: float, true: int) -> None:
    assert fewest_dropped(FIVE, 4, excess=excess, fits=lambda count: count >= true) == true
    assert fewest_dropped(FIVE, 4, excess=excess, fits=lambda count: False) == 4


def test_the_oldest_exchanges_go_whole_and_the_system_prompt_stays(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    lengths = [len(tokenizer.encode(chatml.render(without_oldest(FIVE, count))).ids) for count in range(5)]
    for limit in range(lengths[4], lengths[0] + 1):
        (piece,), turns = encoded(tokenizer, chatml, FIVE, max_length=limit)
        assert turns == next(count for count, length in enumerate(lengths) if length <= limit), "no more than needed"
        assert said(tokenizer, piece) == chatml.render(without_oldest(FIVE, turns))
        assert learnt(tokenizer, piece).count("<|im_end|>") == 5 - turns
        assert not piece.truncated


def test_an_exchange_too_long_alone_loses_its_end(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    last = without_oldest(FIVE, 4)
    whole = tokenizer.encode(chatml.render(last)).ids
    (piece,), turns = encoded(tokenizer, chatml, FIVE, max_length=len(whole) - 3)
    assert turns == 4
    assert piece.tokens.tolist() == whole[:-3].tolist()
    assert piece.truncated
    assert learnt(tokenizer, piece).startswith("assistant number 4")
    assert "<|im_end|>" not in learnt(tokenizer, piece)


def test_every_answer_of_a_rewritten_history_keeps_what_fits_of_it(tokenizer: Tokenizer) -> None:
    template = ChatTemplate("rewriting", REWRITING, tokenizer.variables)
    thoughts = tuple(
        message | ({"content": f"<think>a thought</think>{message['content']}"} if message["role"] == "assistant" else {})
        for message in FIVE
    )
    whole, _ = encoded(tokenizer, template, thoughts)
    assert len(whole) == 5
    limit = len(whole[1].tokens)
    pieces, turns = encoded(tokenizer, template, thoughts, max_length=limit)
    assert [piece.rung for piece in whole] == ["unrolled"] * 5
    assert turns == 1 + 2 + 3
    for number, piece in enumerate(pieces):
        assert len(piece.tokens) <= limit
        assert learnt(tokenizer, piece) == learnt(tokenizer, whole[number])
        assert "Be brief." in said(tokenizer, piece)


def test_an_end_of_turn_of_several_tokens_is_not_learnt_in_part(tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    template = ChatTemplate("words", source, {"eos_token": "=THE-END="})
    assert template.end_of_turn == "=THE-END="
    assert len(tokenizer.encode(template.end_of_turn).ids) > 2
    talk = messages(("user", "Say it."), ("assistant", "All of it."))
    (whole,), _ = encoded(tokenizer, template, talk)
    assert learnt(tokenizer, whole).strip().endswith("=THE-END=")
    for limit in range(len(whole.tokens) - 6, len(whole.tokens)):
        (piece,), _ = encoded(tokenizer, template, talk, max_length=limit)
        assert "=" not in learnt(tokenizer, piece) or learnt(tokenizer, piece).strip().endswith("=THE-END=")


@pytest.mark.parametrize(
    ("source", "target", "budget", "kept"),
    [
        (3000, 2000, 1000, (600, 400)),  # both long: in proportion
        (2000, 3000, 1000, (400, 600)),
        (1000, 100, 1000, (900, 100)),  # a short answer stays whole
        (100, 1000, 1000, (100, 900)),  # a short question stays whole
        (30, 20, 100, (30, 20)),  # both fit
        (700, 500, 1000, (584, 416)),  # ⌊1000 · 500 / 1200⌋ = 416
        (500, 500, 1000, (500, 500)),
        (0, 1000, 10, (0, 10)),
        (10, 0, 5, (5, 0)),
    ],
)
def test_infer_seqlen_by_its_formula(source: int, target: int, budget: int, kept: tuple[int, int]) -> None:
    assert infer_seqlen(source, target, budget) == kept


def test_shares_are_taken_in_order_or_from_the_last_exchange(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    answers = [(10, 30), (40, 100)]  # a question of 10 and an answer of 20, twice a question of 10
    forward = shared_out(answers, 60, backwards=False)
    assert forward.tolist() == [*range(30), *range(30, 40), *range(40, 60)]  # (10, 20), then 30 left: 2·10 < 30, so (10, 20)
    backward = shared_out(answers, 60, backwards=True)
    assert backward.tolist() == [*range(30, 40), *range(40, 90)]  # 2·10 < 60, so (10, 50); nothing is left for the first


def test_infer_seqlen_keeps_the_beginning_of_each_part(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    (whole,), _ = encoded(tokenizer, chatml, FIVE)
    edges = np.flatnonzero(np.diff((whole.weight != 0).astype(int))) + 1
    answers = list(zip(edges[::2].tolist(), [*edges[1::2].tolist(), len(whole.tokens)], strict=False))
    for train_on in ("assistant", "last", "all"):
        for limit in (20, 47, 80, len(whole.tokens) - 1):
            wanted = shared_out(answers, limit, backwards=train_on == "last")
            pieces, _ = encoded(tokenizer, chatml, FIVE, truncate="infer_seqlen", max_length=limit, train_on=train_on)
            for piece in pieces:  # a question alone has nothing to learn and is left out
                assert piece.tokens.tolist() == whole.tokens[wanted].tolist()
                if train_on == "assistant":
                    ends = learnt(tokenizer, piece).count("<|im_end|>")
                    assert ends == sum(end - 1 in wanted for _, end in answers)
