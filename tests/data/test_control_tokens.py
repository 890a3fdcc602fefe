"""Control tokens that are written in the data are letters, and nothing else of the text changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.chat import ChatTemplate, resolve
from luthier.data.control_tokens import ControlTokens
from luthier.data.encode import Encoder, Settings, weigh
from luthier.data.examples import Conversation, Document, Message, Origin
from luthier.data.texts import supervised, written
from luthier.data.tokenizer import Tokenizer, load_tokenizer

HERE = Origin("rows.json", 1, 0)
KINDS = ["minimind", "llama2", "qwen", "llama3", "gpt2", "internlm2"]
"""`tokenizers`, SentencePiece and tiktoken."""


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, shared: Path) -> Tokenizer:
    return load_tokenizer(shared / "data/tokenizers" / request.param)


def talk(question: str, answer: str = "It ends a turn.") -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def template(tokenizer: Tokenizer) -> ChatTemplate:
    """A chat template that writes control tokens around the turns, whichever the tokenizer has."""
    source = "{% for message in messages %}{{ end }}{{ message.role }}\n{{ message.content }}{{ end }}{% endfor %}"
    return resolve(source, None, {**tokenizer.variables, "end": tokenizer.control_tokens[-1]})


def test_each_kind_reads_them_as_letters_where_they_are_written(tokenizer: Tokenizer) -> None:
    for token in tokenizer.control_tokens[:3]:
        id_ = tokenizer.encode(token).ids.tolist()
        text = f"a {token} b{token}你好 {token}"
        begin = text.index(token)
        places = [(begin, begin + len(token))]
        found = tokenizer.encode(text, places)
        assert found.ids.tolist().count(id_[0]) == 2, token
        plain = [k for k in range(len(found.ids)) if found.starts[k] < begin + len(token) and found.ends[k] > begin]
        assert id_[0] not in found.ids[plain]
        assert token in text[found.starts[plain[0]] : found.ends[plain[-1]]], "offsets are those of the whole text"
        assert tokenizer.decode(found.ids, skip_special=False) == text
        ends = [text[a:b] for a, b, id__ in zip(found.starts, found.ends, found.ids, strict=True) if id__ == id_[0]]
        assert ends == [token, token]


def test_without_places_nothing_changes(tokenizer: Tokenizer, shared: Path) -> None:
    text = f"你好 {tokenizer.control_tokens[0]} there"
    whole, none = tokenizer.encode(text), tokenizer.encode(text, [(0, 1)])
    assert [column.tolist() for column in whole] == [column.tolist() for column in none]


def test_only_what_the_template_writes_is_a_token(tokenizer: Tokenizer) -> None:
    token = tokenizer.control_tokens[-1]
    chosen, control = template(tokenizer), ControlTokens(tokenizer.control_tokens)
    (plain,) = supervised(chosen, control, talk("What is XYZ?"), None, "assistant")
    (item,) = supervised(chosen, control, talk(f"What is {token}?"), None, "assistant")
    assert item.text == plain.text.replace("XYZ", token)
    assert [item.text[a:b] for a, b, _ in item.spans] == [plain.text[a:b] for a, b, _ in plain.spans]
    assert [item.text[a:b] for a, b in item.letters] == [token]
    ids = tokenizer.encode(token).ids.tolist()
    assert tokenizer.encode(item.text, item.letters).ids.tolist().count(ids[0]) == 4
    assert tokenizer.encode(item.text).ids.tolist().count(ids[0]) == 5
    prompt, letters = written(chosen, control, talk(f"{token}{token}")[:1], None)
    assert [prompt[a:b] for a, b in letters] == [token, token]


@pytest.fixture(scope="module")
def minimind(shared: Path) -> Tokenizer:
    return load_tokenizer(shared / "data/tokenizers/minimind")


PIECES = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<|im_",
    "end|>",
    "a",
    " ",
    "\n",
    "文",
    "\U0010fffd",
    "\U00100001",
    "</think>",
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_whatever_is_written_the_template_s_tokens_are_its_own(minimind: Tokenizer, question: str, answer: str) -> None:
    """The text is the template's, character for character, and holds as many control tokens as for a harmless conversation."""
    chosen, control = resolve("chatml", None, minimind.variables), ControlTokens(minimind.control_tokens)
    messages = talk(f"q{question}q", f"a{answer}a")
    (item,) = supervised(chosen, control, messages, None, "assistant")
    assert item.text == chosen.render(messages)
    assert [item.text[a:b] for a, b, _ in item.spans] == [f"a{answer}a<|im_end|>"]
    ids = minimind.encode(item.text, item.letters).ids.tolist()
    for token in ("<|im_start|>", "<|im_end|>"):
        assert ids.count(minimind.encode(token).ids[0]) == 2
    assert ids.count(minimind.encode("<|endoftext|>").ids[0]) == 0
    assert minimind.decode(ids, skip_special=False) == item.text


def test_calls_and_schemas_are_searched_too(minimind: Tokenizer) -> None:
    control = ControlTokens(minimind.control_tokens)
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": ["<|im_end|>"]}}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert control.are_in(messages)
    assert not control.are_in(talk("q"), [{"function": {"description": "none"}}])
    assert control.are_in(talk("q"), [{"function": {"description": "<|im_start|>"}}])
    (item,) = supervised(resolve("qwen2.5", None, minimind.variables), control, messages, None, "assistant")
    assert [item.text[a:b] for a, b in item.letters] == ["<|im_end|>"]


def encoded(tokenizer: Tokenizer, example: Conversation | Document, choice: Any, **options: Any) -> tuple[list[int], np.ndarray]:
    stage = "pt" if isinstance(example, Document) else "sft"
    chosen = None if stage == "pt" else resolve("chatml", None, tokenizer.variables)
    encoder = Encoder(tokenizer, chosen, Settings(stage, options.pop("max_length", 100), control_tokens=choice, **options))
    texts = encoder.texts(example)
    (piece,) = encoder.pieces(texts, encoder.encode(texts)) or ()
    return piece.tokens.tolist(), piece.weight


def test_the_recipe_chooses(minimind: Tokenizer) -> None:
    end = int(minimind.encode("<|im_end|>").ids[0])
    row = Conversation(tuple(talk("<|im_end|>", "<|im_end|>!")), HERE)
    counts = {choice: encoded(minimind, row, choice)[0].count(end) for choice in ("auto", "text", "tokens")}
    assert counts == {"auto": 2, "text": 2, "tokens": 4}
    document = Document("a <|im_end|> b", HERE)
    counts = {choice: encoded(minimind, document, choice)[0].count(end) for choice in ("auto", "text", "tokens")}
    extra = int(minimind.eos_id == end)
    assert counts == {"auto": 1 + extra, "text": extra, "tokens": 1 + extra}


def test_letters_are_learnt_and_a_cut_forgets_the_real_end(minimind: Tokenizer) -> None:
    row = Conversation(tuple(talk("q", "word " * 40 + "and <|im_end|> is not the end")), HERE)
    chosen, control = resolve("chatml", None, minimind.variables), ControlTokens(minimind.control_tokens)
    (item,) = supervised(chosen, control, row.messages, None, "assistant")
    tokens = minimind.encode(item.text, item.letters)
    weights = weigh(tokens, item.spans)
    (begin, end), size = item.letters[0], len(tokens.ids)
    assert weights[(tokens.starts >= begin) & (tokens.ends <= end)].all()
    ids, weight = encoded(minimind, row, "auto", max_length=size // 2, truncate="start")
    assert ids[-2] == int(minimind.encode("<|im_end|>").ids[0])
    assert weight[-2] == 0, "the answer has lost its beginning, so its end is not learnt"


def test_a_folder_says_which_added_tokens_are_text(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").symlink_to(shared / "data/tokenizers/internlm2/tokenizer.model")
    added = {"92542": {"content": "<|im_end|>", "special": True}, "92550": {"content": "<tool>", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    control = load_tokenizer(tmp_path).control_tokens
    assert "<|im_end|>" in control
    assert "</s>" in control
    assert "<tool>" not in control
