"""Write the model card of the embedded model from the record of its build.

    python recipes/tiny/card.py src/luthier/models/tiny

The words stand in card.md, every number comes from build.json in the model's folder, which build.py writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

KINDS_ZH = {
    "identity": "身份",
    "maker": "来历",
    "human or not": "是不是人",
    "greeting": "问候",
    "thanks": "感谢",
    "apology": "道歉",
    "everyday": "日常问题",
    "colour": "颜色",
    "counting": "数数",
    "translation": "翻译",
    "two-digit sum": "两位数加法",
    "tool call": "调用工具",
    "tool answer": "说出工具的结果",
    "cannot know": "无从知道的事",
}
LANGUAGES = {"en": "English", "zh": "中文"}
MODELS = {"pretrained": "after pre-training · 预训练后", "published": "as published · 发布版"}
TRAININGS = {"pretrain": "pre-training · 预训练", "chat": "dialogues · 对话"}


def card(record: dict[str, Any]) -> str:
    """The card as Markdown, from what build.py recorded."""
    exam, runs = record["exam"], record["runs"]
    total = [sum(column) for column in zip(*exam.values(), strict=True)]
    documents = {language: values["documents"] for language, values in record["perplexity"]["published"].items()}
    fields = {
        "weights": f"{record['weights']:,}",
        "vocabulary": f"{record['vocabulary']:,}",
        "total": total[1],
        "exam": lines((kind, KINDS_ZH[kind], *exam[kind]) for kind in exam)
        + f"\n| **all** | **合计** | **{total[0]}** | {total[1]} |",
        "documents": f"{record['documents']:,}",
        "corpus_megabytes": f"{record['corpus_bytes'] / 1e6:.1f}",
        "dialogues": f"{record['dialogues']:,}",
        "validation": runs["chat"]["validation"],
        "trainings": lines(
            (words, f"{run['tokens']:,}", f"{run['steps']:,}", run["epochs"], f"{run['held_out_loss']:.3f}")
            for run, words in ((runs[name], words) for name, words in TRAININGS.items())
        ),
        "held_out": f"{documents['en']} documents in English and {documents['zh']} in Chinese",
        "perplexity": lines(
            (words, LANGUAGES[language], f"{values['perplexity']:.1f}", f"{values['bits_per_byte']:.2f}")
            for name, words in MODELS.items()
            for language, values in record["perplexity"][name].items()
        ),
        "hours": f"{sum(run['seconds'] for run in runs.values()) / 3600:.1f}",
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "processor": record["processor"],
        "digests": lines((name, f"`{digest}`") for name, digest in record["sha256"].items()),
    }
    return Template(Path(__file__).with_name("card.md").read_text("utf-8")).substitute(fields)


def lines(rows: Iterable[Sequence[object]]) -> str:
    """Rows of a Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write README.md in the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the model")
    folder = parser.parse_args(arguments).folder
    (folder / "README.md").write_text(card(json.loads((folder / "build.json").read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
