"""Two-digit sums for reinforcement: 1,000 questions to learn from and 200 other sums to be examined on, in both languages.

    python recipes/tiny/sums.py recipes/tiny

Writes `sums.jsonl` and `sums_heldout.jsonl`, prompts with the sum as reference. No pair of numbers is in both, in either order; the
phrasings are those that the embedded model knows from its dialogues (`computed.toml`), those sums that its examination asks are left out.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dialogue import share_of

HERE = Path(__file__).parent
TRAINING, HELD_OUT = 1000, 200
HELD_OUT_SHARE = 0.1


def pairs() -> Iterator[tuple[int, int]]:
    """All pairs of two-digit numbers, in an order of their own, without those of the examination."""
    asked = {row["answer"].partition(" = ")[0] for row in map(json.loads, (HERE / "exam.jsonl").read_text("utf-8").splitlines())}
    numbers = range(10, 100)
    every = ((a, b) for a in numbers for b in numbers if f"{a} + {b}" not in asked and f"{b} + {a}" not in asked)
    yield from sorted(every, key=lambda pair: share_of(f"order {pair}"))


def is_held_out(a: int, b: int) -> bool:
    """Whether a sum is for the examination, whichever number comes first."""
    return share_of(f"sums {min(a, b)} {max(a, b)}") < HELD_OUT_SHARE


def rows(held_out: bool, count: int) -> Iterator[dict[str, str]]:
    """Questions about sums that are held out or not, each in a phrasing drawn by its numbers."""
    table = tomllib.loads((HERE / "computed.toml").read_text("utf-8"))["sum"]
    phrasings = [*table["bare"], *table["en"]["ask"], *table["zh"]["ask"]]
    chosen = [pair for pair in pairs() if is_held_out(*pair) == held_out]
    for a, b in chosen[:count]:
        ask = phrasings[int(share_of(f"phrasing {a} {b}") * len(phrasings))]
        yield {"prompt": ask.format(a=a, b=b), "reference": str(a + b)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the two files")
    folder = parser.parse_args(arguments).out
    for name, held_out, count in (("sums.jsonl", False, TRAINING), ("sums_heldout.jsonl", True, HELD_OUT)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(held_out, count)]
        (folder / name).write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    main()
