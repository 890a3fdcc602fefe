"""A stream shows whole characters and no part of a stop string, and adds up to the text of the whole answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.generation.text import TextStream


class Bytes:
    """A tokenizer with one token a byte, decoded as byte-level tokenizers do."""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return bytes(ids).decode(errors="replace")


def pieces(data: bytes, stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(Bytes(), stops)
    shown = []
    for token in data:
        shown.append(stream.push(token))
        if stream.stopped:
            break
    shown.append(stream.finish())
    return shown, stream


# U+FFFD itself is held back like an incomplete character, so that one step may complete two stop strings.
readable = st.characters(codec="utf-8", exclude_characters="\ufffd")


@given(st.text(readable), st.lists(st.text(readable, min_size=1, max_size=4), max_size=3))
def test_stream_is_the_text_up_to_the_first_stop(text: str, stops: list[str]) -> None:
    shown, stream = pieces(text.encode(), tuple(stops))
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    assert "".join(shown) == stream.text
    if not places:
        assert stream.text == text
    else:  # byte by byte, the stop string that is complete first ends the answer
        assert stream.stopped
        ends = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert stream.text == text[: min(text.find(stop) for stop in stops if 0 <= text.find(stop) <= ends - len(stop))]


@given(st.text(alphabet="ab<|im_end|>你😀", max_size=40))
def test_no_piece_shows_a_part_of_what_becomes_a_stop(text: str) -> None:
    shown, _ = pieces((text + "<|im_end|>tail").encode(), ("<|im_end|>",))
    assert "".join(shown) == (text + "<|im_end|>").split("<|im_end|>")[0]


def test_characters_are_never_split() -> None:
    shown, _ = pieces("黄大力😀!".encode())
    assert [piece for piece in shown if piece] == list("黄大力😀!")


def test_bytes_that_never_become_a_character_appear_at_the_end() -> None:
    shown, stream = pieces("好".encode() + b"\xe4\xbd")
    assert shown[-1] == "\ufffd"
    assert stream.text == "好\ufffd"


@pytest.mark.parametrize("name", ["llama2", "gpt2", "qwen", "internlm2"])
def test_real_tokenizers_stream_what_they_decode(name: str, shared: object) -> None:
    pytest.importorskip("luthier.data.tokenizer")
    from luthier.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(shared / "data" / "tokenizers" / name)
    text = "Hello,  world!\n\n    def f(x): return x 你好，世界😀👩‍👩‍👧 — naïve ǅ ​ 한국어 \t end "
    ids = [int(token) for token in tokenizer.encode(text).ids]
    stream = TextStream(tokenizer)
    shown = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(shown) == tokenizer.decode(ids)
    assert sum(bool(piece) for piece in shown) > 10
