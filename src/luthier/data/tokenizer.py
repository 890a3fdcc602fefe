"""Text to tokens and back, whatever kind of tokenizer a model came with.

All kinds answer alike: `encode` gives ids and, for each token, the characters it stands for. Masks are made of characters and mapped
onto tokens through these offsets, so a text is always tokenised whole: pieces tokenised apart are different tokens.

| in the folder | encoded by |
|---|---|
| `tokenizer.json` with a configuration beside it | transformers' AutoTokenizer |
| `tokenizer.json` or `.json.gz` alone, `vocab.json` + `merges.txt` alone | the tokenizers library |
| a SentencePiece model | sentencepiece itself (transformers gives other ids) |
| tiktoken ranks | tiktoken |

`save` writes `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`, from which plain AutoTokenizer gives the same ids.
Where it would not, it says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.data import tokenizer_files as files
from luthier.data.tokenizer_pieces import Encoded, PieceBackend
from luthier.errors import UserError

if TYPE_CHECKING:
    from luthier.chat.marks import Place
    from luthier.data.tokenizer_twin import Twin

__all__ = ["Encoded", "Tokenizer", "load_tokenizer"]


class LibraryBackend:
    """Encodes through a `tokenizers.Tokenizer`, which knows offsets and special tokens itself.

    Attributes:
        source: that tokenizer.
        rust: the same, or a copy that neither cuts nor pads.
        controls: texts of its control tokens.
    """

    def __init__(self, rust: Any) -> None:
        self.source, self.rust = rust, _plain(rust)
        self.controls = tuple(token.content for token in rust.get_added_tokens_decoder().values() if token.special)

    @property
    def vocab_size(self) -> int:
        """Ids in all, special tokens included, and those left out between them."""
        added = self.rust.get_added_tokens_decoder()
        return max(self.rust.get_vocab_size(with_added_tokens=True), max(added, default=-1) + 1)

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[Encoded]:
        """Ids and offsets of each text. The library fixes its number of threads at the first call in a process."""
        os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
        return [self._columns(found) for found in self.rust.encode_batch(list(texts), add_special_tokens=False)]

    def encode_letters(self, text: str, letters: Sequence[Place]) -> Encoded:
        """Ids and offsets of one text; control tokens in the given places are letters."""
        return self._twin.encode(text, letters)

    @cached_property
    def _twin(self) -> Twin:
        from luthier.data.tokenizer_twin import Twin

        return Twin(self.rust, self.controls)

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """Text of ids."""
        return self.rust.decode([int(id_) for id_ in ids], skip_special_tokens=skip_special)

    def extended(self, texts: Sequence[str]) -> LibraryBackend:
        """With more tokens."""
        from tokenizers import AddedToken

        self.source.add_tokens([AddedToken(text, normalized=False) for text in texts])
        return LibraryBackend(self.source)

    @staticmethod
    def _columns(found: Any) -> Encoded:
        places = np.array(found.offsets, np.int32).reshape(-1, 2)
        return Encoded(np.array(found.ids, np.int32), places[:, 0], places[:, 1])


def _plain(rust: Any) -> Any:
    """`rust` itself, or a copy of it where it would cut, pad, or leave spaces out of the offsets."""
    if not (rust.truncation or rust.padding or _trims(rust.post_processor)):
        return rust
    copy = type(rust).from_str(rust.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.post_processor = None
    return copy


def _trims(processor: Any) -> bool:
    """Whether a post-processor takes the leading space out of a token's offsets."""
    if type(processor).__name__ == "Sequence":
        return any(_trims(processor[step]) for step in range(len(processor)))
    return bool(getattr(processor, "trim_offsets", False))


class Tokenizer:
    """A tokenizer with its special tokens and chat template.

    Args:
        backend: what encodes.
        roles: role → text of the special token: `bos_token`, `eos_token`, `pad_token`, `unk_token`, ….
        fingerprint: digest of everything that decides which ids a text gets.
        adds_bos: plain calls of this tokenizer begin a text with `bos_token`.
        chat_template: Jinja source, None without one.
        hf: the transformers tokenizer behind it, None where the vocabulary was read without transformers.
    """

    def __init__(
        self,
        backend: LibraryBackend | PieceBackend,
        *,
        roles: Mapping[str, str],
        fingerprint: str,
        adds_bos: bool,
        chat_template: str | None = None,
        hf: Any = None,
    ) -> None:
        self._backend, self.variables, self.fingerprint = backend, dict(roles), fingerprint
        self.adds_bos, self.chat_template, self.hf = adds_bos, chat_template, hf
        self.bos_token, self.eos_token = self.variables.get("bos_token"), self.variables.get("eos_token")
        self.bos_id, self.eos_id = self._id("bos_token"), self._id("eos_token")
        pad = self._id("pad_token")
        self.pad_id: int = next((id_ for id_ in (pad, self.eos_id) if id_ is not None), 0)

    @classmethod
    def of(cls, hf: Any, fingerprint: str | None = None) -> Tokenizer:
        """Wrap a transformers tokenizer; without a fingerprint it gets one of its whole content.

        Raises:
            UserError: it has no fast implementation, hence no offsets.
        """
        rust = getattr(hf, "backend_tokenizer", None)
        if rust is None:
            raise UserError(f"{type(hf).__name__} has no fast implementation", hint="Put a tokenizer.json into its folder.")
        return cls(
            LibraryBackend(rust),
            roles={role: str(text) for role, text in hf.special_tokens_map.items() if isinstance(text, str)},
            fingerprint=fingerprint or files.digest([rust.to_str().encode()]),
            adds_bos=hf.bos_token_id is not None and list(hf("a").input_ids)[:1] == [hf.bos_token_id],
            chat_template=files.one_template(hf.chat_template),
            hf=hf,
        )

    @property
    def vocab_size(self) -> int:
        """Ids in all, special tokens included: the rows that embeddings need."""
        return self._backend.vocab_size

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Texts of the tokens that are no text: those that begin and end turns, and the like."""
        return self._backend.controls

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The ids that plain calls of this tokenizer put before and behind a text."""
        front = ([self.bos_id] if self.adds_bos and self.bos_id is not None else [], list[int]())
        if self.hf is not None:
            whole, bare = list(self.hf("a").input_ids), list(self.hf("a", add_special_tokens=False).input_ids)
        elif isinstance(self._backend, LibraryBackend):
            source = self._backend.source
            whole, bare = source.encode("a").ids, source.encode("a", add_special_tokens=False).ids
        else:
            return front
        places = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
        return (whole[: places[0]], whole[places[0] + len(bare) :]) if places else front

    def encode(self, text: str, letters: Sequence[Place] = ()) -> Encoded:
        """Ids and offsets of `text`; special tokens written in it are recognised, none are added.

        Args:
            text: whole.
            letters: places where control tokens are written that shall be read as letters, in order.
        """
        return self._backend.encode_letters(text, letters) if letters else self._backend.encode_batch([text], 1)[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[Encoded]:
        """`encode` for many texts at once, on up to `threads` threads."""
        return self._backend.encode_batch(texts, threads)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`."""
        return self._backend.decode(ids, skip_special)

    def save(self, folder: Path, chat_template: str | None = None) -> str | None:
        """Write the tokenizer so that plain AutoTokenizer loads it.

        Args:
            folder: where to; created if absent.
            chat_template: template to write in place of the tokenizer's own.

        Returns:
            None, or a sentence when AutoTokenizer would give other ids than this tokenizer.
        """
        from luthier.data.tokenizer_convert import save

        folder.mkdir(parents=True, exist_ok=True)
        return save(self, folder, chat_template or self.chat_template)

    def extended(self, texts: Sequence[str]) -> Tokenizer:
        """This tokenizer with more tokens; itself when it has them all. A new token is found anywhere in a text, as a whole.

        It is ordinary text otherwise: it is shown when answers are decoded, unlike special tokens. This object is used up.
        """
        new = [text for text in dict.fromkeys(texts) if len(self.encode(text).ids) != 1]
        if not new:
            return self
        return Tokenizer(
            self._backend.extended(new),
            roles=self.variables,
            fingerprint=files.digest([self.fingerprint.encode(), *(text.encode() for text in new)]),
            adds_bos=self.adds_bos,
            chat_template=self.chat_template,
            hf=self.hf,
        )

    @property
    def backend(self) -> LibraryBackend | PieceBackend:
        """What encodes."""
        return self._backend

    def _id(self, role: str) -> int | None:
        """Id of the special token in a role, None where there is none."""
        if role not in self.variables:
            return None
        ids = self.encode(self.variables[role]).ids
        return int(ids[0]) if len(ids) == 1 else None


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`.

    Raises:
        UserError: there is none, it is of an unknown kind, or it needs remote code.
    """
    file = files.vocabulary(folder)
    configured = (folder / files.CONFIG).is_file() or (folder / "config.json").is_file()
    if file is None or (configured and file.name in ("tokenizer.json", "vocab.json")):
        return _by_transformers(folder)
    if file.name.startswith("tokenizer.json") or file.name == "vocab.json":
        return _by_library(folder, file)
    return _by_pieces(folder, file)


def _by_transformers(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if (folder / "tokenizer.json").is_file():  # a class that only remote code knows: the file itself says all
            return _by_library(folder, folder / "tokenizer.json")
        raise UserError(f"no tokenizer that can be read ({str(error).splitlines()[0]})", where=str(folder)) from error
    return Tokenizer.of(found, files.fingerprint(folder))


def _by_library(folder: Path, file: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Rust
    from tokenizers import decoders, models, pre_tokenizers

    if file.name == "vocab.json":
        rust = Rust(models.BPE.from_file(str(file), str(folder / "merges.txt")))
        rust.pre_tokenizer, rust.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        rust.add_special_tokens([text for text in ("<|endoftext|>",) if rust.token_to_id(text) is not None])
    else:
        rust = Rust.from_str(files.open_text(file))
    specials = {token.content: id_ for id_, token in rust.get_added_tokens_decoder().items()}
    roles = files.roles(folder, specials)
    first = rust.encode("a").tokens[:1]
    return Tokenizer(
        LibraryBackend(rust),
        roles=roles,
        fingerprint=files.fingerprint(folder),
        adds_bos="bos_token" in roles and first == [roles["bos_token"]],
        chat_template=files.chat_template(folder),
        hf=None,
    )


def _by_pieces(folder: Path, file: Path) -> Tokenizer:
    from luthier.data.tokenizer_spm import SentencePieceEngine
    from luthier.data.tokenizer_tiktoken import TiktokenEngine, read_ranks

    ranks = read_ranks(file)
    engine = TiktokenEngine(ranks, file) if ranks else SentencePieceEngine(file)
    specials = engine.specials | files.added_tokens(folder)
    roles = {role: text for role, text in engine.roles.items() if text in specials or role == "unk_token"}
    roles |= files.roles(folder, specials)
    adds_bos = files.read_json(folder / files.CONFIG).get("add_bos_token", "bos_token" in roles)
    return Tokenizer(
        PieceBackend(engine, specials, files.control_tokens(folder, specials, engine.controls, len(engine.lengths))),
        roles=roles,
        fingerprint=files.fingerprint(folder),
        adds_bos=bool(adds_bos),
        chat_template=files.chat_template(folder),
    )
