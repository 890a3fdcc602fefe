"""Make the small corpus on which the embedded model is pre-trained, and the attributions that its licences ask for.

    python recipes/tiny/corpus.py --text ../shared/data/pretrain/full build/tiny/corpus.jsonl

`--text` is a folder of `NAME.txt.gz`; its `SOURCES.md` (in the folder or beside it) has a table row `| name | docs | MB | lang |
licence | source |` for each. A text is used only if its row says public domain, CC0, CC BY, MIT or Apache-2.0. `SELECTION` names
the texts and how each falls into documents: children's stories and tales for English, dialogues for Chinese, sentence pairs for
both, since a very small model learns most from short and simple language. Each language gives the same number of UTF-8 bytes
(Chinese says about as much as English in the same bytes), a text that is larger than its share is sampled by documents.

Every fortieth document, by a hash of its words, goes into `NAME_heldout.jsonl` beside the corpus instead: rows `{language, text}`
on which perplexity is measured. Pairs of sentences hold nothing out, since they are in both languages.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PERMISSIVE = re.compile(r"^(public domain|CC0|CC BY [24]\.0|MIT|Apache-2\.0)", re.IGNORECASE)
TRADITIONAL = set(
    "們這個說時對會學國來沒過還讓給點樣開關無為後從聽見讀寫問題愛買賣車電話應該請謝麼東門間書師隻幾樂歡錢幫氣長總難飯"
)
"""Characters of traditional script; a sentence with one of them is left out, so that the model writes one script."""


@dataclass(frozen=True)
class Text:
    """One text of the selection.

    Args:
        name: file name without `.txt.gz`, and name of its row in SOURCES.md.
        language: en, zh, or both.
        split: how documents are separated: `blank` lines, or `paragraphs` gathered to about `DOCUMENT` characters.
    """

    name: str
    language: str
    split: str


SELECTION = (
    Text("stories_african_en", "en", "blank"),
    Text("stories_pratham_en", "en", "blank"),
    Text("gutenberg_aesop", "en", "paragraphs"),
    Text("se_v-s-vernon-jones", "en", "paragraphs"),
    Text("gutenberg_grimm", "en", "paragraphs"),
    Text("gutenberg_andersen", "en", "paragraphs"),
    Text("gutenberg_jungle", "en", "paragraphs"),
    Text("gutenberg_aliceinwonderland", "en", "paragraphs"),
    Text("se_the-wonderful-wizard-of-", "en", "paragraphs"),
    Text("stories_african_zh", "zh", "blank"),
    Text("kdconv_dialogues_zh", "zh", "blank"),
    Text("crosswoz_dialogues_zh", "zh", "blank"),
    Text("tatoeba_cmn_eng", "both", "pairs"),
)
DOCUMENT = 1200
PAIRS = 12
HELD_OUT_SHARE = 1 / 40


@dataclass(frozen=True)
class Licensed:
    """What SOURCES.md says about a text."""

    licence: str
    source: str


def sources(folder: Path) -> dict[str, Licensed]:
    """The rows of the folder's SOURCES.md (or that of its parent) whose licence lets the text be used."""
    place = next((path for path in (folder / "SOURCES.md", folder.parent / "SOURCES.md") if path.is_file()), None)
    if place is None:
        raise SystemExit(f"error: {folder}: no SOURCES.md there or beside it, so no licence is known")
    cells = [
        [cell.strip() for cell in line.strip("| \n").split(" | ")]
        for line in place.read_text("utf-8").splitlines()
        if line.startswith("|")
    ]
    return {cell[0]: Licensed(cell[4], cell[5]) for cell in cells if len(cell) == 6 and PERMISSIVE.match(cell[4])}


def read(path: Path) -> str:
    """The text of a file, compressed or not."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")


def documents(text: Text, content: str, rng: random.Random) -> Iterator[str]:
    """The documents of one text, in an order that does not matter."""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", content) if block.strip()]
    if text.split == "blank":
        yield from blocks
    elif text.split == "pairs":
        pairs = [block for block in blocks if not TRADITIONAL & set(block)]
        rng.shuffle(pairs)
        for start in range(0, len(pairs), PAIRS):
            yield "\n\n".join(pairs[start : start + PAIRS])
    else:
        gathered: list[str] = []
        for line in (line.strip() for line in content.splitlines()):
            gathered.append(re.sub(r"\s{2,}", " ", line))
            if sum(map(len, gathered)) >= DOCUMENT:
                yield "\n".join(filter(None, gathered))
                gathered = []
        if gathered:
            yield "\n".join(filter(None, gathered))


def is_held_out(text: Text, document: str) -> bool:
    """Whether a document is kept for the examination; it depends on nothing but its words."""
    number = int.from_bytes(hashlib.blake2b(document.encode(), digest_size=6).digest())
    return text.language != "both" and number / 2**48 < HELD_OUT_SHARE


def collect(folder: Path, budget: int, seed: int) -> tuple[list[str], list[tuple[Text, Licensed, int]]]:
    """Documents of all texts, shuffled, and how many bytes each text gave.

    Args:
        folder: where the texts lie.
        budget: bytes of each language; a text in both languages counts half for each.
        seed: of the sampling and the order.
    """
    allowed, found = sources(folder), []
    for text in SELECTION:
        path = folder / f"{text.name}.txt.gz"
        if text.name not in allowed or not path.is_file():
            raise SystemExit(f"error: {path}: not there, or its licence is not in SOURCES.md as a permissive one")
        rng = random.Random(f"{seed} {text.name}")
        parts = [part for part in documents(text, read(path), rng) if not is_held_out(text, part)]
        rng.shuffle(parts)
        found.append((text, parts))
    chosen: list[str] = []
    report: list[tuple[Text, Licensed, int]] = []
    left = {"en": budget, "zh": budget}
    for text, parts in sorted(found, key=lambda entry: size(entry[1])):
        waiting = [other for other, _ in found if other.name not in {done.name for done, _, _ in report} and shares(other, text)]
        room = min(left[language] for language in languages(text)) // len(waiting) * len(languages(text))
        taken = take(parts, room)
        for language in languages(text):
            left[language] -= size(taken) // len(languages(text))
        chosen += taken
        report.append((text, allowed[text.name], size(taken)))
    random.Random(f"{seed} order").shuffle(chosen)
    return chosen, report


def held_out(folder: Path) -> list[dict[str, str]]:
    """The held-out documents of all texts, with their languages. `collect` has looked at the licences."""
    rows = []
    for text in SELECTION:
        parts = documents(text, read(folder / f"{text.name}.txt.gz"), random.Random(0))
        rows += [{"language": text.language, "text": part} for part in parts if is_held_out(text, part)]
    return rows


def languages(text: Text) -> tuple[str, ...]:
    """The languages a text counts for."""
    return ("en", "zh") if text.language == "both" else (text.language,)


def shares(a: Text, b: Text) -> bool:
    """Whether two texts draw on the same budget."""
    return bool(set(languages(a)) & set(languages(b)))


def size(parts: Sequence[str]) -> int:
    """UTF-8 bytes of all parts."""
    return sum(len(part.encode()) for part in parts)


def take(parts: Sequence[str], room: int) -> list[str]:
    """The first parts that fit into `room` bytes."""
    taken: list[str] = []
    for part in parts:
        room -= len(part.encode())
        if room < 0:
            break
        taken.append(part)
    return taken


def authors(folder: Path) -> list[str]:
    """Authors of the children's stories, where files with one `author` a row lie beside the folder."""
    names: set[str] = set()
    for path in sorted(folder.parent.glob("stories_*.jsonl*")):
        content = read(path)
        names.update(json.loads(line)["author"].strip() for line in content.split("\n") if line.strip())
    return sorted(filter(None, names))


def attribution(report: Sequence[tuple[Text, Licensed, int]], names: Sequence[str]) -> str:
    """The attributions as a page of Markdown."""
    lines = [
        "# Texts that the embedded model was trained on",
        "",
        "Besides dialogues of Luthier's own (`recipes/tiny/dialogues.py`, Apache-2.0), parts of these texts, whitespace tidied and",
        "cut into documents. The model does not hold the texts; their makers are thanked here, as their licences ask.",
        "",
        "| text | licence | source | bytes used |",
        "|---|---|---|---|",
    ]
    lines += [f"| {text.name} | {licensed.licence} | {licensed.source} | {count} |" for text, licensed, count in report]
    if names:
        lines += ["", "Authors and translators of the children's stories (CC BY 4.0, African Storybook and Pratham Books):", ""]
        lines += ["; ".join(names) + "."]
    return "\n".join(lines) + "\n"


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the corpus and, beside it, ATTRIBUTION.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of NAME.txt.gz with SOURCES.md")
    parser.add_argument("--megabytes", type=float, default=3.4, help="of text in each language")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    chosen, report = collect(options.text, int(options.megabytes * 1e6), options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write(options.out, [{"text": text} for text in chosen])
    write(options.out.with_name(f"{options.out.stem}_heldout.jsonl"), held_out(options.text))
    (options.out.parent / "ATTRIBUTION.md").write_text(attribution(report, authors(options.text)), "utf-8")
    print(f"{options.out}: {len(chosen)} documents, {size(chosen) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
