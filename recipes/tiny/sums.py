"""Two-digit sums for reinforcement: 1,000 questions to learn from and 200 other sums to be examined on, in both languages.

    python recipes/tiny/sums.py recipes/tiny

Writes `sums.jsonl` and `sums_heldout.jsonl`, prompts with the sum as reference. No pair of numbers is in both, in either order; the
phrasings are those that the embedded model knows from its dialogues (`computed.toml`), those sums that its examination asks are left out.

`sums_reworded.jsonl` and `sums_reworded_heldout.jsonl` ask for the same sums in words that the model has not met and mostly takes for
another task: asked for a number, it writes a number out.
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
REWORDED = (
    "Only the number: {a} + {b}",
    "Compute {a} + {b} and give only the number.",
    "What number is {a} + {b}?",
    "Write the result of {a} + {b} as a number.",
    "Tell me {a} + {b} as digits",
    "计算 {a} + {b}，只写结果。",
    "口算：{a}＋{b}",
    "{a}＋{b}＝",
)
"""Phrasings unknown to the embedded model."""


def pairs() -> Iterator[tuple[int, int]]:
    """All pairs of two-digit numbers, in an order of their own, without those of the examination."""
    asked = {row["answer"].partition(" = ")[0] for row in map(json.loads, (HERE / "exam.jsonl").read_text("utf-8").splitlines())}
    numbers = range(10, 100)
    every = ((a, b) for a in numbers for b in numbers if f"{a} + {b}" not in asked and f"{b} + {a}" not in asked)
    yield from sorted(every, key=lambda pair: share_of(f"order {pair}"))


def is_held_out(a: int, b: int) -> bool:
    """Whether a sum is for the examination, whichever number comes first."""
    return share_of(f"sums {min(a, b)} {max(a, b)}") < HELD_OUT_SHARE


def known() -> list[str]:
    """The phrasings that the embedded model has learnt."""
    table = tomllib.loads((HERE / "computed.toml").read_text("utf-8"))["sum"]
    return [*table["bare"], *table["en"]["ask"], *table["zh"]["ask"]]


def rows(held_out: bool, count: int, phrasings: Sequence[str]) -> Iterator[dict[str, str]]:
    """Questions about sums that are held out or not, each in a phrasing drawn by its numbers."""
    chosen = [pair for pair in pairs() if is_held_out(*pair) == held_out]
    for a, b in chosen[:count]:
        ask = phrasings[int(share_of(f"phrasing {a} {b}") * len(phrasings))]
        yield {"prompt": ask.format(a=a, b=b), "reference": str(a + b)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the files")
    folder = parser.parse_args(arguments).out
    for name, phrasings in (("sums", known()), ("sums_reworded", REWORDED)):
        for more, held_out, count in (("", False, TRAINING), ("_heldout", True, HELD_OUT)):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(held_out, count, phrasings)]
            (folder / f"{name}{more}.jsonl").write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    main()
