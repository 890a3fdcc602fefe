"""Does PPO with a trained reward model do what it should? Text, answers, a reward model and PPO on the embedded model, seed by seed.

    python benchmarks/rlhf.py --seeds 0 1 2

Trains `recipes/tiny/rlhf.yaml`. Printed are the share of held-out pairs that the reward model orders rightly (`pairs`), the mean reward
of greedy answers to the 200 held-out prompts before and after PPO, the largest distance from the model at the start in any step (`kl`, KL
divergence of an answer in nats; the recipe's target is 2), and the CPU seconds of all four stages.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

PROMPTS = Path(__file__).resolve().parents[1] / "recipes/tiny/sums_heldout.jsonl"
TARGET = 2.0
"""`kl_target` of the recipe."""


def reward(judge: Path, policy: Path) -> float:
    """Mean reward of a model's greedy answers to the held-out prompts."""
    import luthier

    asked = [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").splitlines()]
    answers = luthier.load(policy).answers(asked, max_new_tokens=24)
    turns = [
        [{"role": "user", "content": a}, {"role": "assistant", "content": b.text}] for a, b in zip(asked, answers, strict=True)
    ]
    scorer: Any = luthier.load(judge)
    return mean(scorer.score(turns))


def learn(folder: Path, seed: int) -> dict[str, float]:
    """What the module's text names, by a seed: `pairs`, `before`, `after`, `held_out`, `kl`, `cpu`. The runs lie in `folder`."""
    import luthier

    began = time.process_time()
    luthier.train("tiny/rlhf", overrides=[f"train.seed={seed}", f"output={folder}"], name=f"seed-{seed}", progress=False)
    spent = time.process_time() - began
    whole = folder / f"seed-{seed}"
    told = {stage: luthier.Run.find(whole / stage).metrics() for stage in ("rm", "ppo")}
    return {
        "pairs": [record["eval_accuracy"] for record in told["rm"] if "eval_accuracy" in record][-1],
        "before": reward(whole / "rm", whole / "sft"),
        "after": reward(whole / "rm", whole / "ppo"),
        "kl": max(record["kl"] for record in told["ppo"] if "kl" in record),
        "cpu": spent,
    }


def main() -> None:
    """Print a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for seed in parser.parse_args().seeds:
        with tempfile.TemporaryDirectory() as folder:
            found = learn(Path(folder), seed)
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
