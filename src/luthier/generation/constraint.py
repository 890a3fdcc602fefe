"""Answers of a given form: at each token, those that cannot lead to it are forbidden.

    Constraint ─ read once ─▶ Guide ─ allowed tokens ─▶ choice.py ─ token ─▶ Guide …

A form is a JSON schema, a regular expression, a list of choices, or a context-free grammar in Lark's notation. llguidance walks
the form and the tokenizer's vocabulary together, byte by byte, so that every token that stays within the form is allowed,
however it cuts the text; the model chooses among them. An answer ends at a stop token, which is allowed where the form is
complete, or by itself where nothing may follow. One that is cut at `max_new_tokens` is cut like any other, and may be
incomplete.

White space between the parts of a JSON text is at most one space or one line with its indent: a small model that may write
blanks without end sometimes does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from luthier.data.tokenizer import LibraryBackend, Tokenizer
from luthier.errors import UserError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Kind = Literal["json_schema", "regex", "choice", "grammar"]
BLANK = r"( |\n *)?"
"""White space between the parts of a JSON text."""
INDENT = 32
"""Widest indent of a line."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that an answer must have. Made by the class methods.

    Args:
        kind: what `text` is.
        text: the JSON of a schema, a regular expression, the JSON of a list of choices, or a grammar.
    """

    kind: Kind
    text: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool) -> Constraint:
        """JSON that a schema describes; `{"type": "object"}` is any object."""
        return cls("json_schema", json.dumps(schema, ensure_ascii=False))

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Text that a regular expression matches as a whole, in the notation of Rust, without look-around and back-references."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Constraint:
        """One of these texts.

        Raises:
            UserError: there is none, or an empty one.
        """
        if not texts or not all(texts):
            raise UserError("an answer is to be one of some texts, and none of them may be empty", where="choice")
        return cls("choice", json.dumps(list(texts), ensure_ascii=False))

    @classmethod
    def grammar(cls, lark: str) -> Constraint:
        """Text of a context-free grammar in llguidance's dialect of Lark, beginning at `start`."""
        return cls("grammar", lark)


class Guide:
    """One answer on its way through a form.

    Args:
        matcher: of llguidance, at the beginning.
        end: the token by which it knows the end.
        stops: tokens that end the answer.

    Attributes:
        complete: nothing may follow.
        lost: the form has grown too complex to be followed any further; the answer is cut here.
    """

    def __init__(self, matcher: LLMatcher, end: int, stops: frozenset[int]) -> None:
        self._matcher, self._end, self._stops = matcher, end, np.array(sorted(stops), np.int64)
        self.complete = self.lost = False

    def allowed(self, size: int) -> NDArray[np.bool_]:
        """Which of `size` tokens may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self.lost = self._matcher.is_error()
        found = np.unpackbits(bits, count=min(size, len(bits) * 8), bitorder="little").astype(np.bool_)
        found = np.pad(found, (0, size - len(found)))
        if found[self._end]:
            found[self._stops[self._stops < size]] = True
        return found

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed."""
        if token not in self._stops:
            self._matcher.consume_token(token)
            self.lost |= self._matcher.is_error()
            self.complete = not self.lost and self._matcher.is_stopped()


def guide(constraint: Constraint, tokenizer: object, stops: frozenset[int]) -> Guide:
    """The beginning of an answer of a form.

    Args:
        constraint: the form.
        tokenizer: a `Tokenizer`.
        stops: tokens that end the answer.

    Raises:
        UserError: llguidance is not installed, it cannot read the form, or this is a tokenizer of another kind.
    """
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise UserError("answers of a given form need `llguidance`", hint="pip install 'luthier[constrain]'") from None
    if not isinstance(tokenizer, Tokenizer):
        raise UserError("answers of a given form need a tokenizer with a vocabulary", where=constraint.kind)
    vocabulary = _VOCABULARIES.get(tokenizer)
    if vocabulary is None:
        vocabulary = _VOCABULARIES[tokenizer] = _vocabulary(tokenizer)
    try:
        matcher = LLMatcher(vocabulary, _grammar(constraint), log_level=0)
    except ValueError as error:
        raise _unreadable(constraint, str(error)) from None
    if matcher.is_error():
        raise _unreadable(constraint, matcher.get_error())
    return Guide(matcher, int(vocabulary.eos_token), stops)


_VOCABULARIES: WeakKeyDictionary[Tokenizer, LLTokenizer] = WeakKeyDictionary()


def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    """The tokens of a tokenizer as llguidance wants them; takes a second for a large vocabulary."""
    from llguidance import LLTokenizer

    backend = tokenizer.backend
    rust = backend.rust if isinstance(backend, LibraryBackend) else backend.engine.convert(backend.specials)
    end = tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.pad_id
    return LLTokenizer(rust.to_str(), n_vocab=tokenizer.vocab_size, eos_token=end)


def _grammar(constraint: Constraint) -> str:
    """The form in llguidance's own notation."""
    from llguidance import LLMatcher

    if constraint.kind == "json_schema":
        options: Any = {"whitespace_flexible": True, "whitespace_pattern": BLANK.replace("*", f"{{0,{INDENT}}}")}
        return LLMatcher.grammar_from_json_schema(constraint.text, overrides=options)
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.text)
    if constraint.kind == "choice":
        quoted = (json.dumps(text, ensure_ascii=False) for text in json.loads(constraint.text))
        return LLMatcher.grammar_from_lark(f"start: {' | '.join(quoted)}")
    return LLMatcher.grammar_from_lark(constraint.text)


def _unreadable(constraint: Constraint, why: str) -> UserError:
    first = why.strip().splitlines()[0] if why.strip() else "it is not understood"
    return UserError(f"the form of the answer cannot be read: {first}", where=constraint.kind)
