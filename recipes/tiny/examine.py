"""Ask a model the 200 questions of the examination, and count the right answers.

    python recipes/tiny/examine.py tiny
    python recipes/tiny/examine.py runs/demo --show 20

An answer is right if one of the row's `expect` occurs in it. Decoding is greedy, so the numbers are the same each time. Any
JSON-lines file of `{kind, messages, expect}`, and `tools` where a tool is to be called, will do for `--questions`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import luthier

EXAM = Path(__file__).with_name("exam.jsonl")
Counts = dict[str, tuple[int, int]]
"""Right answers and questions by kind."""


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]


def examine(model: str | Path, rows: Sequence[dict[str, Any]], show: int = 0) -> Counts:
    """Count the right answers of each kind, in the order of the questions; the first `show` wrong ones are printed."""
    chat = luthier.load(model)
    counts: Counts = {}
    for row in rows:
        answer = chat.chat(row["messages"], tools=row.get("tools"), max_new_tokens=64, temperature=0.0)
        right = any(expected in answer for expected in row["expect"])
        before = counts.get(row["kind"], (0, 0))
        counts[row["kind"]] = (before[0] + right, before[1] + 1)
        if not right and show > 0:
            show -= 1
            print(f"[{row['kind']}] {row['messages'][-1]['content']!r} → {answer!r}, not {row['answer']!r}")
    return counts


def whole(counts: Counts) -> tuple[int, int]:
    """Right answers and questions of all kinds together."""
    return sum(right for right, _ in counts.values()), sum(asked for _, asked in counts.values())


def table(counts: Counts) -> str:
    """The counts as lines of a table, and the whole below."""
    lines = {**counts, "all": whole(counts)}
    return "\n".join(f"{kind:14} {right:4} of {asked:4}  {100 * right / asked:5.1f} %" for kind, (right, asked) in lines.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of the kinds, and the whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="`tiny`, a run, or a model folder")
    parser.add_argument("--questions", type=Path, default=EXAM)
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers")
    options = parser.parse_args(arguments)
    print(table(examine(options.model, rows_of(options.questions), options.show)))


if __name__ == "__main__":
    main()
