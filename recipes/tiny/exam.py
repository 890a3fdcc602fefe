"""Make the examination of the embedded model: 200 questions of its own kinds that it was never asked, with rules.

    python recipes/tiny/exam.py recipes/tiny/exam.jsonl

Half of them are in each language. An answer passes if one of the row's `expect` occurs in it. Where a dialogue calls a tool, the
call is one question and what is said about the tool's answer another. A question may be the last of several turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialogue import LANGUAGES, Dialogue, questions
from dialogues import held_out, training, write

SEED = 1


@dataclass(frozen=True)
class Part:
    """A part of the examination: its name, the kinds of dialogue that it asks, in turn, and how often in each language."""

    name: str
    kinds: tuple[str, ...]
    count: int


PARTS = (
    Part("identity", ("identity",), 10),
    Part("maker", ("maker",), 4),
    Part("human or not", ("human",), 4),
    Part("greeting", ("greeting",), 10),
    Part("thanks", ("thanks",), 4),
    Part("apology", ("apology",), 4),
    Part("everyday", ("fact", "name", "opposite", "sound", "legs", "category", "capital", "use", "size", "after"), 12),
    Part("colour", ("colour",), 7),
    Part("counting", ("count", "count_down"), 5),
    Part("translation", ("word_to_zh", "word_to_en", "phrase_to_zh", "phrase_to_en"), 8),
    Part("two-digit sum", ("sum",), 20),
    Part("tool call", ("tool call",), 4),
    Part("tool answer", ("tool answer",), 4),
    Part("cannot know", ("unknown",), 4),
)


def exam(dialogues: Sequence[Dialogue]) -> Iterator[dict[str, Any]]:
    """Questions from held-out dialogues: `{kind, language, messages, tools?, answer, expect}`, where `kind` is the part's name."""
    pool = [question for dialogue in dialogues for question in questions(dialogue)]
    for part in PARTS:
        for language in LANGUAGES:
            waiting = {kind: [row for row in pool if (row["kind"], row["language"]) == (kind, language)] for kind in part.kinds}
            for row in in_turn(list(waiting.values()), part.count):
                yield {**row, "kind": part.name}


def in_turn(piles: Sequence[list[dict[str, Any]]], count: int) -> list[dict[str, Any]]:
    """One from each pile, then a second one, until there are `count`."""
    longest = max(map(len, piles))
    dealt = [pile[place] for place in range(longest) for pile in piles if place < len(pile)]
    if len(dealt) < count:
        raise SystemExit(f"error: only {len(dealt)} of {count} questions were held out")
    return dealt[:count]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the examination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    write(parser.parse_args(arguments).out, exam(held_out(SEED, training(SEED))))


if __name__ == "__main__":
    main()
