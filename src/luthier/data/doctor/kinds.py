"""The kinds of problems, each with its level and what to do about it; and one problem in one row.

An `error` is a mistake in the data; one is enough for the exit code 1. A `warning` is worth a look and may be meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from luthier.data.examples import Origin
from luthier.data.problems import printable
from luthier.errors import UserError, did_you_mean

_LONGEST_ID = 40


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem.

    Args:
        name: as it is written in `--ignore` and in the JSON output.
        level: whether it is a mistake for certain.
        about: what it is, in a few words.
        advice: what to do, as a short imperative clause.
        mended: what the cleaned copy does: leave the row out, edit it, or keep it as it is.
    """

    name: str
    level: Literal["error", "warning"]
    about: str
    advice: str
    mended: Literal["left out", "edited", "kept"]


_OUT = "take the row out"

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("broken", "error", "the row cannot be read", "mend its syntax", "left out"),
        Kind("wrong-type", "error", "a value of the wrong type", "write it as the format asks", "left out"),
        Kind("missing", "error", "a field is missing", "add it, or name the column with --columns", "left out"),
        Kind("empty", "error", "a field is empty", f"fill it in, or {_OUT}", "left out"),
        Kind("no-question", "error", "an answer without a question", f"add the question, or {_OUT}", "left out"),
        Kind("no-answer", "error", "no answer to learn", f"add the answer, or {_OUT}", "left out"),
        Kind("role-order", "error", "turns out of order", "join or reorder the turns", "left out"),
        Kind("format", "error", "does not keep to its format", "write it as the format asks", "left out"),
        Kind("media", "error", "pictures or sound", _OUT, "left out"),
        Kind("tool-call", "error", "a tool call and its result do not match", "add what is missing", "left out"),
        Kind("placeholder", "error", "a placeholder is left in", "fill it in with `convert --set`", "kept"),
        Kind("dummy", "error", "dummy text", f"write the real text, or {_OUT}", "left out"),
        Kind("lost-character", "error", "characters were lost", "take the text from its source anew, as UTF-8", "kept"),
        Kind("mojibake", "error", "was decoded wrongly once", "let --fix mend it, or save the source anew as UTF-8", "edited"),
        Kind("control", "error", "odd control characters", "let --fix take them out", "edited"),
        Kind("duplicate", "error", "the same as an earlier row", _OUT, "left out"),
        Kind("leak", "error", "is in the validation data too", "take it out of one of them", "left out"),
        Kind("equal-pair", "error", "the better answer is the worse one", _OUT, "left out"),
        Kind("too-long", "error", "longer than max_length", "shorten it, or raise --max-length", "kept"),
        Kind("unsupervised", "error", "nothing in it is learnt", f"mend its loss weights, or {_OUT}", "left out"),
        Kind("refused", "error", "the template refuses it", "choose another template, or mend the row", "left out"),
        Kind("near-duplicate", "warning", "nearly the same as an earlier row", "keep one of them", "kept"),
        Kind("special-token", "warning", "a control token of chat models in the text", "take it out, unless it is meant", "kept"),
        Kind("language", "warning", "languages are mixed", "see that it is meant", "kept"),
        Kind("secret", "warning", "looks like a secret", "take it out and revoke it", "kept"),
        Kind("email", "warning", "looks like an e-mail address", "take it out, unless it is public", "kept"),
        Kind("phone", "warning", "looks like a phone number", "take it out, unless it is public", "kept"),
    )
}
"""Every kind by name, errors first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem in one row; as text, `file:line (row 7): what, where in the row; what to do`.

    Args:
        kind: what sort of problem.
        origin: file, line and row.
        id: the row's own id, if it has one.
        what: what is wrong, in words.
        where: the place in the row (`messages[2].content`, `turn 3`), empty for the row as a whole.
    """

    kind: Kind
    origin: Origin
    id: str | None
    what: str
    where: str = ""

    def __str__(self) -> str:
        named = f", id {self.id}" if self.id else ""
        place = f", in {self.where}" if self.where and self.where not in self.what else ""
        return f"{self.origin} (row {self.origin.row + 1:,}{named}): {self.what}{place}; {self.kind.advice}"

    def as_dict(self) -> dict[str, Any]:
        """The finding as plain JSON values."""
        return {
            "file": self.origin.file,
            "line": self.origin.line,
            "row": self.origin.row + 1,
            "id": self.id,
            "kind": self.kind.name,
            "level": self.kind.level,
            "what": self.what,
            "where": self.where,
            "advice": self.kind.advice,
        }


def kinds_named(names: str, flag: str) -> frozenset[str]:
    """The kinds in a list such as `duplicate,phone`.

    Raises:
        UserError: one of them is not a kind.
    """
    found = frozenset(name.strip() for name in names.split(",") if name.strip())
    for name in sorted(found - KINDS.keys()):
        raise UserError(f"there is no kind of problem `{printable(name)}`", where=flag, hint=did_you_mean(name, KINDS))
    return found


def row_id(value: Any) -> str | None:
    """The id that a row gives itself."""
    if isinstance(value, dict):
        for name in ("id", "_id", "uuid", "conversation_id", "question_id", "prompt_id"):
            found = value.get(name)
            if isinstance(found, str | int) and not isinstance(found, bool) and found != "":
                return printable(str(found), _LONGEST_ID)
    return None
