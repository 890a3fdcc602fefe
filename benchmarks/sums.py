"""Does GRPO raise the share of right answers? Two-digit sums that the model has never seen, asked in words that it does not know.

    python benchmarks/sums.py --seeds 0 1 2

Trains `recipes/tiny/grpo.yaml` with an exact match as the only reward. Printed are, of the 200 held-out sums, the shares that the embedded
model answers right before and after, each token the most likely one, and the CPU seconds of the training. What remains wrong are sums whose
ones carry: of those the embedded model has 1 % right in any words, and samples of its own do not teach it that.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

HELD_OUT = Path(__file__).resolve().parents[1] / "recipes/tiny/sums_reworded_heldout.jsonl"


def share(model: Path | str) -> float:
    """Of the held-out sums, the share that a model answers right."""
    import luthier

    rows = [json.loads(line) for line in HELD_OUT.read_text("utf-8").splitlines()]
    answers = luthier.load(model).answers([row["prompt"] for row in rows], max_new_tokens=32)
    found = [re.findall(r"\d+", answer.text) for answer in answers]
    return sum(bool(numbers) and numbers[-1] == row["reference"] for numbers, row in zip(found, rows, strict=True)) / len(rows)


def learn(folder: Path, seed: int) -> dict[str, float]:
    """Shares `before` and `after` training with a seed, and the CPU seconds of the training (`cpu`). The run lies in `folder`."""
    import luthier

    began = time.process_time()
    run = luthier.train("tiny/grpo", overrides=[f"train.seed={seed}", f"output={folder}"], name=f"seed-{seed}", progress=False)
    return {"cpu": time.process_time() - began, "before": share("tiny"), "after": share(run.path)}


def main() -> None:
    """Print a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for seed in parser.parse_args().seeds:
        with tempfile.TemporaryDirectory() as folder:
            found = learn(Path(folder), seed)
        print(f"seed {seed}: {found['before']:.3f} before, {found['after']:.3f} after, {found['cpu']:.0f} CPU-s", flush=True)


if __name__ == "__main__":
    main()
