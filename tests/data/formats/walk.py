"""What each file of the reference data gives: its examples, turns and supervised tokens, or why it is refused.

    python -m tests.data.formats.walk > tests/data/formats/shared.yaml

`shared.yaml` pins it. `OPTIONS` says how files are read whose columns nobody can guess; each of them is refused without.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from luthier.chat import resolve
from luthier.data.encode import Encoder, Settings
from luthier.data.examples import Conversation, Document, Example, Feedback, Preference, Prompt
from luthier.data.problems import Problems, RowError
from luthier.data.read_examples import choose_format, read_examples
from luthier.data.sources import rows_of
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import UserError
from luthier.recipe.schema import Source

PINS = Path(__file__).with_name("shared.yaml")
OTHERS = ("chat_templates/", "tokenizers/")
"""Folders of what is no data to learn from."""
OPTIONS: dict[str, dict[str, Any]] = {
    "medical/zh_internal_medicine_3000.csv": {"columns": {"instruction": "title", "input": "ask", "output": "answer"}},
    "medical/zh_internal_medicine_200_gb18030.csv": {"columns": {"question": "ask", "answer": "answer"}},
    "eval/lambada_openai.jsonl": {"columns": {"prompt": "context", "completion": "continuation"}},
    "pretrain/tatoeba_cmn_eng.tsv.gz": {"columns": {"question": "1", "answer": "2"}},
    "formats/swift/swift_pre.csv": {"columns": {"text": "response"}},
    "formats/swift/swift_pre.jsonl": {"columns": {"text": "response"}},
}


def files(data: Path) -> list[str]:
    """Every file of the reference data but templates and tokenizers; those of `OPTIONS` once more, named with a `+`."""
    names = [path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()]
    return sorted([*(name for name in names if not name.startswith(OTHERS)), *(f"{name}+" for name in OPTIONS)])


def measure(data: Path, name: str, encoder: Encoder | None = None) -> dict[str, Any]:
    """What a file gives; with an encoder also its supervised tokens."""
    source = Source(path=str(data / name.rstrip("+")), **OPTIONS[name[:-1]] if name.endswith("+") else {})
    problems = Problems("skip")
    try:
        chosen, _ = choose_format(source, rows_of(source))
        examples = list(read_examples(source, problems))
        problems.finish()
    except UserError as error:
        return {"refused": error.what}
    counts = Counter(type(example).__name__.lower() for example in examples)
    found = {"format": chosen.NAME, **dict(counts), "turns": sum(turns(example) for example in examples)}
    if problems.count:
        found["bad"] = sorted(line.rpartition(f"{source.path}:")[2] for line in problems.by_kind())
    if encoder:
        found["tokens"] = sum(supervised(encoder, examples))
    return found


def turns(example: Example) -> int:
    """Messages of an example; a document is one."""
    if isinstance(example, Document):
        return 1
    if isinstance(example, Preference):
        return len(example.prompt) + len(example.chosen) + len(example.rejected)
    return len(example.messages)


def supervised(encoder: Encoder, examples: list[Example]) -> Iterator[int]:
    """Supervised tokens of each example: all of a document but the first, the answers of a talk, both answers of a pair."""
    for example in examples:
        for part in _learnable(example):
            if isinstance(part, Document):
                yield len(encoder.tokenizer.encode(part.text).ids) - 1
                continue
            try:
                texts = encoder.texts(part)
                pieces = encoder.pieces(texts, encoder.tokenizer.encode_batch([text.text for text in texts], 1))
            except RowError:
                continue
            yield sum(int((piece.weight != 0).sum()) for piece in pieces or ())


def _learnable(example: Example) -> list[Document | Conversation]:
    if isinstance(example, Preference):
        sides = (example.chosen, example.rejected)
        return [Conversation((*example.prompt, *side), example.origin, example.tools) for side in sides]
    if isinstance(example, Feedback):
        return [Conversation(example.messages, example.origin, example.tools)]
    return [] if isinstance(example, Prompt) else [example]


def fixed_encoder(data: Path) -> Encoder:
    """The tokenizer and template that tokens are counted with."""
    tokenizer = load_tokenizer(data / "tokenizers/minimind")
    return Encoder(tokenizer, resolve("chatml", None, tokenizer.variables), Settings("sft", 1 << 20))


def main(data: Path) -> None:
    """Print what there is, as YAML."""
    encoder = fixed_encoder(data)
    found = {name: measure(data, name, encoder) for name in files(data)}
    yaml.safe_dump(found, sys.stdout, allow_unicode=True, sort_keys=False, width=200, default_flow_style=None)


if __name__ == "__main__":
    main(Path(__file__).resolve().parents[4] / "shared/data")
