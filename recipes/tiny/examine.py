"""Ask a model the questions that were held out from its training, and count the right answers.

    python recipes/tiny/examine.py tiny build/tiny/heldout.jsonl
    python recipes/tiny/examine.py runs/demo build/tiny/heldout.jsonl --show 20

An answer is right if one of the row's `expect` occurs in it (letter case counts, since some questions are about capitals).
Decoding is greedy, so the numbers are the same each time. Any JSON-lines file of `{kind, messages, expect}` will do.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import luthier


def examine(model: str, rows: Sequence[dict], show: int = 0) -> dict[str, tuple[int, int]]:
    """Right answers and questions of each kind; prints the first `show` wrong answers."""
    chat = luthier.load(model)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        answer = chat.chat(row["messages"], max_new_tokens=64, temperature=0.0)
        right = any(expected in answer for expected in row["expect"])
        counts[row["kind"]][0] += right
        counts[row["kind"]][1] += 1
        if not right and show > 0:
            show -= 1
            print(f"[{row['kind']}] {row['messages'][-1]['content']!r} → {answer!r}, not {row['answer']!r}")
    return {kind: (right, asked) for kind, (right, asked) in counts.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of the kinds, worst first, and the whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="`tiny`, a run, or a model folder")
    parser.add_argument("questions", type=Path)
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers")
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in options.questions.read_text("utf-8").split("\n") if line]
    counts = examine(options.model, rows, options.show)
    for kind, (right, asked) in sorted(counts.items(), key=lambda entry: entry[1][0] / entry[1][1]):
        print(f"{kind:14} {right:4} of {asked:4}  {100 * right / asked:5.1f} %")
    right, asked = (sum(column) for column in zip(*counts.values(), strict=True))
    print(f"{'all':14} {right:4} of {asked:4}  {100 * right / asked:5.1f} %")


if __name__ == "__main__":
    main()
