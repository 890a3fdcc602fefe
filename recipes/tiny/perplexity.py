"""Measure how well a model foresees text that it was not trained on, by language.

    python recipes/tiny/perplexity.py src/luthier/models/tiny build/tiny/corpus_heldout.jsonl

Rows are `{language, text}`. Perplexity is exp(mean loss per token), and depends on how long the tokens are; bits per byte is the
same loss per UTF-8 byte of the text, ∑ loss / ln 2 / ∑ bytes, and can be compared between tokenizers. A document is read in
windows of as many tokens as the model was trained on; the first token of a window has nothing before it and is not counted.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 512
Measured = dict[str, dict[str, float]]
"""By language: `documents`, `tokens`, `perplexity`, `bits_per_byte`."""


@torch.no_grad()
def measure(model: str | Path, rows: Sequence[dict[str, Any]]) -> Measured:
    """Perplexity and bits per byte of each language, computed in float32."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found: Measured = {}
    for language in sorted({row["language"] for row in rows}):
        texts = [row["text"] for row in rows if row["language"] == language]
        loss, tokens, size = 0.0, 0, 0
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            for window in (ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)):
                loss += loss_of(network, window)
                tokens += len(window) - 1
                size += sum(map(len, tokenizer.convert_ids_to_tokens(window[1:])))  # byte-level: one character stands for a byte
        found[language] = {
            "documents": len(texts),
            "tokens": tokens,
            "perplexity": round(math.exp(loss / tokens), 2),
            "bits_per_byte": round(loss / math.log(2) / size, 3),
        }
    return found


def loss_of(network: Any, window: Sequence[int]) -> float:
    """The sum of the losses of all tokens of a window but the first, in nats."""
    ids = torch.tensor([window])
    logits = network(ids).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")) if len(window) > 1 else 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("documents", type=Path)
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in options.documents.read_text("utf-8").split("\n") if line]
    for language, values in measure(options.model, rows).items():
        print(
            f"{language}: {values['documents']} documents, {values['tokens']} tokens, perplexity {values['perplexity']:.2f}, "
            f"{values['bits_per_byte']:.3f} bits per byte"
        )


if __name__ == "__main__":
    main()
