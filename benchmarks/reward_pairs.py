"""Does a reward model learn what it is shown? Pairs made by rule, the embedded model, accuracy on pairs of prompts it has not seen.

    python benchmarks/reward_pairs.py --seeds 0 1 2

The better answers are pieces of the real one: whole sentences in a row, at least two, up to 240 characters, the first three such
pieces; of the prompt the first 80 characters are kept. The worse one is made of each by three rules:

* `shuffled`: its words in another order;
* `cut`: its first six tenths, counted in words;
* `repeated`: its first six words again and again, up to the same length.

A fifth of the prompts, with all their pairs, is held out. Printed are the share of held-out pairs of which the better answer has the
larger reward, for each rule and over all, and the CPU time of the training.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "shared/data/llamafactory/dpo_en_demo.json"
RULES = ("shuffled", "cut", "repeated")
LONGEST, PIECES, ASKED = 240, 3, 80
STEPS = 50
"""Of 16 pairs: two thirds of what there is to learn from, each pair at most once."""
Pair = dict[str, str]


def worse(answer: str, rule: str, source: random.Random) -> str:
    """A worse form of an answer."""
    words = answer.split()
    if rule == "shuffled":
        return " ".join(source.sample(words, len(words)))
    if rule == "cut":
        return " ".join(words[: max(1, len(words) * 6 // 10)])
    return " ".join(words[:6] * (len(words) // 6 + 1))[: len(answer)]


def sentences(text: str) -> list[str]:
    """The sentences of a text, white space made plain."""
    return re.findall(r"\S.*?[.!?:](?=\s|$)", " ".join(text.split()))


def pieces(text: str) -> list[str]:
    """The first pieces of a text: whole sentences in a row, at least two, up to `LONGEST` characters."""
    found: list[list[str]] = [[]]
    for sentence in sentences(text):
        if len(" ".join([*found[-1], sentence])) > LONGEST:
            found.append([])
        found[-1].append(sentence)
    return [" ".join(piece) for piece in found if len(piece) > 1][:PIECES]


def pairs(file: Path = DATA) -> tuple[list[Pair], list[Pair]]:
    """Pairs to learn from, and pairs of other prompts."""
    learnt: list[Pair] = []
    held: list[Pair] = []
    asked: set[str] = set()
    for number, row in enumerate(json.loads(file.read_text("utf-8"))):
        prompt, source = row["conversations"][-1]["value"][:ASKED], random.Random(number)
        if prompt in asked:  # the file asks some things twice
            continue
        asked.add(prompt)
        for answer in pieces(row["chosen"]["value"]):
            for rule in RULES:
                pair = {"prompt": prompt, "chosen": answer, "rejected": worse(answer, rule, source), "rule": rule}
                if pair["chosen"] != pair["rejected"]:
                    (held if number % 5 == 0 else learnt).append(pair)
    return learnt, held


def learn(folder: Path, seed: int, steps: int = STEPS) -> dict[str, float]:
    """Train a reward model, and the accuracy on held-out pairs by rule, over all (`all`), and the CPU seconds of the training (`cpu`)."""
    import luthier

    learnt, held = pairs()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.json").write_text(json.dumps(learnt))
    train: dict[str, Any] = {"max_steps": steps, "batch_size": 16, "learning_rate": 5e-4, "seed": seed, "log_every": 10}
    recipe = {
        "model": "tiny",
        "stage": {"type": "rm", "centering": 0.01},
        "method": "full",
        "data": {"train": [str(folder / "pairs.json")], "max_length": 256},
        "train": train,
        "output": str(folder / "runs"),
        "report_to": [],
    }
    began = time.process_time()
    run = luthier.train(recipe, name=f"seed-{seed}", progress=False)
    spent = time.process_time() - began
    scorer: Any = luthier.load(run)
    talks = [
        [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[side]}]
        for pair in held
        for side in ("chosen", "rejected")
    ]
    rewards = scorer.score(talks)
    right = [better > worse for better, worse in zip(rewards[::2], rewards[1::2], strict=True)]
    found = {"all": sum(right) / len(right), "cpu": spent}
    for rule in RULES:
        own = [each for each, pair in zip(right, held, strict=True) if pair["rule"] == rule]
        found[rule] = sum(own) / len(own)
    return found


def main() -> None:
    """Print a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    learnt, held = pairs()
    print(f"{len(learnt)} pairs to learn from, {len(held)} held out")
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            found = learn(Path(folder), seed, options.steps)
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
