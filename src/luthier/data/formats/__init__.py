"""Formats: what the rows of a file mean. One file a format, each a module with the names of `Format`.

A format reads a row into canonical examples and writes an example as a row of its own; `lost` says what the row could not hold,
by reading it back. Placeholders such as `{{name}}` are left as they stand.

The order of `FORMATS` is the order in which they are tried on a row of unknown kind: formats with telling keys stand before those
whose keys mean something else elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from luthier.data.examples import Example, Origin
from luthier.data.formats import (
    alpaca,
    classification,
    dolly,
    grammar,
    guanaco,
    hh_rlhf,
    human_text,
    kto,
    llama2_text,
    messages,
    moss,
    oasst,
    oasst_pairs,
    openai_dpo,
    preference,
    prompt,
    prompt_completion,
    qa,
    samsum,
    seed_tasks,
    sharegpt,
    text,
    xtuner,
)
from luthier.data.formats.lost import losses


class Format(Protocol):
    """What a format's module holds."""

    NAME: str
    """The name in the recipe."""
    ABOUT: str
    """What it is, in one line."""
    COLUMNS: tuple[str, ...]
    """Canonical names of its columns, which `source.columns` may rename."""
    MAKES: tuple[type[Example], ...]
    """Kinds of examples that its rows can be."""
    matches: Callable[[Any], bool]
    """Whether a row, its columns canonically named, has the keys of this format."""
    parse: Callable[[Any, Origin, Mapping[str, str]], Sequence[Example]]
    """The examples of a row, mostly one; raises `RowError` when it is not what the format promises."""
    write: Callable[[Example], Any]
    """An example as a row with canonical columns; raises `RowError` when the format has no place for such an example."""


_TELLING = (messages, sharegpt, xtuner, moss, oasst, oasst_pairs, seed_tasks, openai_dpo, hh_rlhf, kto, dolly, samsum, grammar)
_GENERAL = (alpaca, preference, prompt_completion, qa, guanaco, human_text, llama2_text, prompt, classification, text)

FORMATS: dict[str, Format] = {module.NAME: module for module in (*_TELLING, *_GENERAL)}
"""Every format by name, in the order in which they are tried."""
READ_ONLY = (moss.NAME, oasst.NAME, oasst_pairs.NAME, seed_tasks.NAME)
"""Formats that are read and not written."""


def lost(target: Format, example: Example) -> list[str]:
    """What `target.write(example)` leaves out, in words without numbers (`tools`, `loss weights`, …); empty when it is lossless.

    Raises:
        RowError: the format has no place for such an example.
    """
    return losses(example, target.parse(target.write(example), example.origin, {}))


__all__ = ["FORMATS", "READ_ONLY", "Format", "lost"]
