"""Data for all stages of `rlhf.yaml`, made by rule about the sums of `sums.py`: text, answers, and pairs of a better and a worse answer.

    python recipes/tiny/rlhf.py recipes/tiny

Writes `rlhf_text.txt` (a line is a document), `rlhf_talk.jsonl` and `rlhf_pairs.jsonl`. Half of the answers in the talk are the bare
number, half say the whole sum; in the pairs the whole sum is always the better answer. So a reward model has something to learn that it
can see, and reinforcement something to gain. No sum that is held out in `sums_heldout.jsonl` is here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import sums

TEXT, TALK, PAIRS = 400, 300, 600


def questions(first: int, count: int) -> Iterator[tuple[str, str, str]]:
    """Questions about sums that are not held out, with the whole sum and the bare number."""
    numbers = (pair for pair in sums.pairs() if not sums.is_held_out(*pair))
    for (a, b), row in islice(zip(numbers, sums.rows(False, first + count), strict=False), first, None):
        yield row["prompt"], f"{a} + {b} = {a + b}", str(a + b)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the files")
    folder = parser.parse_args(arguments).out
    (folder / "rlhf_text.txt").write_text("".join(f"{whole}\n" for _, whole, _ in questions(0, TEXT)), "utf-8")
    talk = [{"prompt": ask, "completion": answers[number % 2]} for number, (ask, *answers) in enumerate(questions(TEXT, TALK))]
    pairs = [{"prompt": ask, "chosen": whole, "rejected": bare} for ask, whole, bare in questions(0, PAIRS)]
    for name, rows in (("rlhf_talk.jsonl", talk), ("rlhf_pairs.jsonl", pairs)):
        (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


if __name__ == "__main__":
    main()
