"""What the reader or the format refuses, told by kind.

Readers and formats say in words what is wrong with a row, and say it to people who train as well; here the words are sorted into
kinds. The first problem of a row is told: what comes after it cannot be read with certainty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from luthier.data.doctor.row import Row
from luthier.data.formats import Format
from luthier.data.problems import RowError, RowProblem, printable
from luthier.data.read_examples import parse

_LONGEST = 200
_KINDS = [
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"broken (JSON|csv)|number of fields is|thousands of digits|^is nested too deeply|is not valid .* text", "broken"),
        (r"surrogate pair", "lost-character"),
        (r"`images`|`videos`|`audios`|part of type|only text is read", "media"),
        (r"tool result|tool call|has no `function`", "tool-call"),
        (r"turns in a row|system turn that is not the first|should follow the tool|unknown role", "role-order"),
        (r"begins with an assistant|user turn is empty|the question is empty|the prompt is empty", "no-question"),
        (r"(missing|`) ?`?(instruction|question|prompt|query|input|ask)`?( is (empty|null))?$", "no-question"),
        (r"the last turn is", "no-answer"),
        (r"answers? (are|is) the same|answer are the same", "equal-pair"),
        (r"is empty|is null", "empty"),
        (r"missing", "missing"),
        (r"should be|is not JSON|nested more than", "wrong-type"),
    )
]
_PLACE = re.compile(r"^((?:in )?(?:turn \d+|`[^`]+`(?: entry \d+)?)): (.+)$", re.DOTALL)
_NAMED = re.compile(r"`([^`]+)`")


def kind_of(message: str) -> str:
    """The kind of a problem that a reader or a format tells in words."""
    return next((kind for pattern, kind in _KINDS if pattern.search(message)), "format")


def read_row(row: Row, chosen: Format, columns: Mapping[str, str]) -> None:
    """Let the format read a row: fill in its examples, or note why it has none."""
    try:
        row.examples = parse(chosen, row.value, row.origin, columns)
    except RowError as error:
        message = printable(str(error), _LONGEST)
        kind = kind_of(message)
        if isinstance(row.value, RowProblem) and row.value.fatal:
            message += " (nothing after it can be read)"
        split = _PLACE.match(message)
        named = _NAMED.search(message)
        row.find(kind, split[2] if split else message, split[1] if split else named[0] if named else "")
