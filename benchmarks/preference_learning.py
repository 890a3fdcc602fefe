"""Do `dpo` and `kto` learn something that holds for what they have not seen? The embedded model, all weights, held-out margins.

    python benchmarks/preference_learning.py --seeds 0 1 2

Pairs and opinions are LLaMA-Factory's demonstration files: real answers of several models, not made for this test. Segments have at most
256 tokens; 48 examples are held out. At the start the policy is its reference: every reward is 0, the loss of `dpo` log 2 = 0.693,
that of `kto` 0.5. Printed are, of the held-out examples at the end, the loss, the share on the right side, the mean reward of what was
better less that of what was worse, and the CPU time of the training.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "shared/data/llamafactory"
FILES = {"dpo": "dpo_en_demo.json", "kto": "kto_en_demo.json"}
START = {"dpo": math.log(2), "kto": 0.5}
"""Loss where the policy is its reference."""
TRAIN: dict[str, dict[str, Any]] = {"dpo": {"epochs": 1, "learning_rate": 2e-5}, "kto": {"epochs": 2, "learning_rate": 5e-5}}


def learn(folder: Path, stage: str, seed: int, **train: Any) -> dict[str, float]:
    """Held-out `loss`, `accuracy` and `margin` after an epoch or two, and the CPU seconds of the training (`cpu`)."""
    import luthier

    values = {"batch_size": 16, "warmup": 0.1, "seed": seed} | TRAIN[stage]
    recipe = {
        "name": f"{stage}-{seed}",
        "output": str(folder / "runs"),
        "model": "tiny",
        "stage": stage,
        "method": "full",
        "data": {"train": [str(DATA / FILES[stage])], "validation": 48, "max_length": 256},
        "train": values | train,
        "evaluate": {"every": 1000},
        "report_to": [],
    }
    began = time.process_time()
    run = luthier.train(recipe, progress=False)
    last = [record for record in run.metrics() if "eval_loss" in record][-1]
    return {name: last[f"eval_{name}"] for name in ("loss", "accuracy", "margin")} | {"cpu": time.process_time() - began}


def main() -> None:
    """Print a line for each stage and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    chosen = parser.parse_args()
    for stage in chosen.stages:
        for seed in chosen.seeds:
            with tempfile.TemporaryDirectory() as folder:
                found = learn(Path(folder), stage, seed)
            print(f"{stage} seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
