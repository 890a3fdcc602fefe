"""Make the general set of `luthier evaluate --forgetting`: a few hundred questions and texts that may travel with the package.

    python recipes/tiny/general.py --mmlu ../shared/data/eval/mmlu/mmlu.zip --text ../shared/data/pretrain/full

Knowledge: the first two test questions of each subject of MMLU (MIT) that are short. Basics: Luthier's own, from `knowledge.toml`, in both
languages, wrong choices drawn from the other rows. Prose: pieces of a novel (CC0) and of Chinese dialogues (Apache-2.0).
The same files give the same set.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier.evaluation.published import Files, subjects_of

OUT = Path(__file__).resolve().parents[2] / "src/luthier/evaluation/general"
SHORT = 600
"""Characters of the longest question that is taken, with its choices."""
KINDS = {
    "colour": ("What colour is {thing}?", "{thing_zh}是什么颜色的？", "colour", "colour_zh"),
    "opposite": ('What is the opposite of "{a}"?', "“{a_zh}”的反义词是什么？", "b", "b_zh"),
    "capital": ("What is the capital of {land}?", "{land_zh}的首都是哪里？", "city", "city_zh"),
}
"""Table of `knowledge.toml` → question in English and in Chinese, and the columns of its answers."""
OF_A_KIND, CHOICES, PIECES, LONG = 20, 4, 24, 1200
PROSE = {"prose_en": "se_the-adventures-of-sherlo.txt.gz", "prose_zh": "kdconv_dialogues_zh.txt.gz"}


def knowledge(zip_file: str) -> Iterator[dict[str, Any]]:
    """Questions of MMLU."""
    for subject, questions in subjects_of(Files(zip_file), "test", ()).items():
        short = [each for each in questions if len(each.text) + sum(map(len, each.choices)) <= SHORT]
        for each in short[:2]:
            yield {"question": each.text, "choices": list(each.choices), "answer": each.answer, "subject": subject}


def basics() -> Iterator[dict[str, Any]]:
    """Easy questions of our own."""
    tables = tomllib.loads(Path(__file__).with_name("knowledge.toml").read_text("utf-8"))
    for kind, (english, chinese, *answers) in KINDS.items():
        rows = [dict(zip(tables[kind]["columns"], row, strict=True)) for row in tables[kind]["rows"]]
        chance = random.Random(kind)
        for row in chance.sample(rows, OF_A_KIND):
            for language, ask, column in zip(("en", "zh"), (english, chinese), answers, strict=True):
                others = sorted({other[column] for other in rows} - {row[column], row.get("a"), row.get("a_zh")})
                choices = [row[column], *chance.sample(others, CHOICES - 1)]
                chance.shuffle(choices)
                yield {
                    "language": language,
                    "kind": kind,
                    "question": ask.format(**row),
                    "choices": choices,
                    "answer": choices.index(row[column]),
                }


def prose(file: Path) -> Iterator[dict[str, str]]:
    """Pieces of a text, spread over it."""
    text = gzip.decompress(file.read_bytes()).decode("utf-8")
    for number in range(PIECES):
        begin = text.index("\n", len(text) * number // PIECES) + 1
        piece = text[begin : begin + LONG]
        yield {"text": piece[: piece.rfind("\n")].strip() if "\n" in piece else piece.strip()}


def write(name: str, rows: Iterator[dict[str, Any]]) -> None:
    """Write a part."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (OUT / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{name}: {len(lines)} rows")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mmlu", required=True, help="mmlu.zip, as it was published")
    parser.add_argument("--text", type=Path, required=True, help="folder of the texts")
    options = parser.parse_args(arguments)
    OUT.mkdir(exist_ok=True)
    write("knowledge", knowledge(options.mmlu))
    write("basics", basics())
    for name, file in PROSE.items():
        write(name, prose(options.text / file))


if __name__ == "__main__":
    main()
