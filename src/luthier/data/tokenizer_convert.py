"""Saving any tokenizer as a folder that plain AutoTokenizer reads, and proving that it gives the same ids.

Tokenizers that came from transformers are saved by transformers. The others are converted to the `tokenizers` format. What was saved
is loaded again and tried on texts in many scripts; if one of them gets other ids, the original vocabulary is kept in place of
`tokenizer.json` (a wrong tokenizer is worse than none), which Luthier reads exactly, and the caller is told.
"""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from luthier.data.tokenizer_pieces import Encoded, PieceBackend
from luthier.files import write_json


class Convertible(Hashable, Protocol):
    """What is asked of a tokenizer in order to save it; see `luthier.data.tokenizer.Tokenizer`."""

    hf: Any
    adds_bos: bool

    @property
    def backend(self) -> Any: ...  # noqa: D102
    @property
    def bos_token(self) -> str | None: ...  # noqa: D102
    @property
    def bos_id(self) -> int | None: ...  # noqa: D102
    @property
    def variables(self) -> dict[str, str]: ...  # noqa: D102
    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]: ...  # noqa: D102


PROBES = (
    "Hello world",
    " Hello  world\n\n",
    "   leading and trailing   ",
    "def f(x):\n        if x:\n\treturn x**2  # 注释\n",
    "I'm can't WE'LL 3.14159 1234567",
    "今天天气很好，我们去公园玩吧。繁體中文：臺灣",
    "日本語のテキスト 한국어 문장 Привет мир Ελληνικά עברית العربية ไทย हिन्दी",
    "🦙 👩‍👩‍👧 🇨🇳 ﬁ ½ ① Ａ é é",
    "a" * 40 + "\r\n" + "\t" * 5 + " " * 33 + "=" * 17,
    "philosophy is a sop to people",
    '{"name": "get_weather", "arguments": {"city": "北京"}} https://example.com/a?b=c&d=%20',
)
"""Texts on which a converted tokenizer must agree with its original."""


def save(tokenizer: Convertible, folder: Path, chat_template: str | None) -> str | None:
    """See `Tokenizer.save`."""
    hf = tokenizer.hf or _converted(tokenizer)
    own, hf.chat_template = hf.chat_template, chat_template
    try:
        hf.save_pretrained(folder)
    finally:
        hf.chat_template = own
    note = _difference(tokenizer)
    backend = tokenizer.backend
    if note and isinstance(backend, PieceBackend):
        (folder / "tokenizer.json").unlink()
        if backend.engine.file.parent.resolve() != folder.resolve():
            shutil.copy(backend.engine.file, folder)
        write_json(folder / "added_tokens.json", backend.specials)
    return note


@lru_cache(maxsize=2)
def _converted(tokenizer: Convertible) -> Any:
    """A transformers tokenizer made of one that was read without transformers."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = tokenizer.backend
    if isinstance(backend, PieceBackend):
        rust = backend.engine.convert({text: id_ for text, id_ in backend.specials.items() if text not in backend.words})
        words = sorted(backend.words, key=backend.specials.__getitem__)  # the last ids of all, in their order
        rust.add_tokens([AddedToken(text, normalized=False) for text in words])
        if tokenizer.adds_bos:
            bos = tokenizer.bos_token
            rust.post_processor = TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_id)]
            )
    else:
        rust = backend.rust
    return PreTrainedTokenizerFast(tokenizer_object=rust, clean_up_tokenization_spaces=False, **tokenizer.variables)


@lru_cache(maxsize=2)
def _difference(tokenizer: Convertible) -> str | None:
    """What AutoTokenizer does differently after saving and loading, in one sentence; None when nothing."""
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder:
        (tokenizer.hf or _converted(tokenizer)).save_pretrained(folder)
        saved = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    probes = [*PROBES, *(f"a {text} b{text}\n" for text in tokenizer.variables.values())]
    for text, own in zip(probes, tokenizer.encode_batch(probes), strict=True):
        if saved(text, add_special_tokens=False).input_ids != own.ids.tolist():
            return (
                f"transformers cannot hold this tokenizer exactly: AutoTokenizer gives {text!r} other ids than it had in training"
            )
    return None
