"""OpenAssistant's message trees as preference pairs: at every question with ranked replies, the best against the worst. Read only.

Questions with fewer than two ranked replies give no pair; a tree without any pair is a bad row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from luthier.data.examples import Example, Origin, Preference
from luthier.data.formats.oasst import COLUMNS, matches, paths, rank_of, root_of, turn_of
from luthier.data.formats.pairs import preference
from luthier.data.formats.written import read_only
from luthier.data.problems import RowError

NAME = "oasst_pairs"
ABOUT = "OpenAssistant trees: the best against the worst reply of each question (read only)"
MAKES: tuple[type[Example], ...] = (Preference,)


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """The pairs of one tree.

    Raises:
        RowError: the tree is malformed, or has no pair.
    """
    pairs: list[Example] = []
    for said, replies in paths(root_of(row, columns)):
        ranked = [reply for reply in replies if rank_of(reply, -1) >= 0]
        if len(ranked) > 1 and ranked[0].get("text") != ranked[-1].get("text"):
            best, worst = turn_of(ranked[0]), turn_of(ranked[-1])
            if best["role"] == "assistant":
                pairs.append(preference(said, [best], [worst], {}, origin))
    if not pairs:
        raise RowError("the tree has no question with two ranked replies")
    return pairs


def write(_example: Example) -> NoReturn:
    """Trees are only read.

    Raises:
        RowError: always.
    """
    read_only(NAME)


__all__ = ["ABOUT", "COLUMNS", "MAKES", "NAME", "matches", "parse", "write"]
