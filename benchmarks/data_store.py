"""What it costs to make a token store of 51,009 alpaca rows, and to find it again.

    python benchmarks/data_store.py              # cold and warm start, each in a process of its own
    python benchmarks/data_store.py --engines    # sentencepiece against tokenizers, with offsets, on 10,000 rows

Reads `../shared/data`: the chatml template, the Llama-2 vocabulary. Figures are for the whole process, imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
ROWS = SHARED / "sft/alpaca_data_en_51k.json.gz"
VOCABULARY = SHARED / "tokenizers/llama2"


def measure_once() -> None:
    """Prepare the data in this process and print what it cost as JSON."""
    from luthier.chat import resolve
    from luthier.data.prepare import prepare
    from luthier.data.tokenizer import load_tokenizer
    from luthier.recipe.schema import Recipe

    recipe = Recipe.model_validate({"model": "tiny", "data": {"train": [str(ROWS)], "template": "chatml"}})
    tokenizer = load_tokenizer(VOCABULARY)
    template = resolve(recipe.data.template, tokenizer.chat_template, tokenizer.variables)
    report = prepare(recipe, tokenizer, template).report
    used = resource.getrusage(resource.RUSAGE_SELF)
    cost = {
        "cpu": used.ru_utime + used.ru_stime,
        "rss": used.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10),
        "prepare": report.seconds,
        "rows": report.rows,
        "tokens": report.tokens,
    }
    print(json.dumps(cost))


def starts() -> None:
    """Cold and warm start against one fresh cache."""
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "warm"):
            command = [sys.executable, __file__, "--once"]
            done = subprocess.run(command, env={**os.environ, "LUTHIER_CACHE": cache}, check=True, capture_output=True, text=True)
            cost = json.loads(done.stdout)
            print(
                f"{name}: {cost['cpu']:.2f} CPU-s, {cost['rss']:.0f} MB peak, prepare {cost['prepare']:.2f} s, "
                f"{cost['rows']:,} rows, {cost['tokens']:,} tokens, {cost['rows'] / cost['cpu']:,.0f} rows per CPU-s"
            )


def engines(count: int = 10_000) -> None:
    """The same rows through both engines, with offsets, on one thread."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    from luthier.chat import resolve
    from luthier.data.problems import Problems
    from luthier.data.read_examples import read_examples
    from luthier.data.tokenizer import LibraryBackend, load_tokenizer
    from luthier.data.tokenizer_pieces import PieceBackend
    from luthier.recipe.schema import Source

    pieces = load_tokenizer(VOCABULARY).backend
    assert isinstance(pieces, PieceBackend)
    library = LibraryBackend(pieces.engine.convert(pieces.specials))
    template = resolve("chatml", None, {})
    examples = read_examples(Source(path=str(ROWS), max_examples=count), Problems(), stage="sft")
    texts = [template.render(example.messages) for example in examples]
    found = {}
    for name, backend in (("sentencepiece", pieces), ("tokenizers", library)):
        began = time.process_time()
        found[name] = [encoded for i in range(0, count, 2000) for encoded in backend.encode_batch(texts[i : i + 2000], 1)]
        print(f"{name}: {time.process_time() - began:.2f} CPU-s for {count:,} rows")
    same = sum(a.ids.tolist() == b.ids.tolist() for a, b in zip(*found.values(), strict=True))
    print(f"same ids in {same:,} of {count:,} rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--engines", action="store_true", help="compare the tokenizer libraries")
    chosen = parser.parse_args()
    measure_once() if chosen.once else engines() if chosen.engines else starts()
