"""The same GRPO run through Luthier and through TRL's GRPOTrainer: tokens that were learnt from, in a second of processor time.

    python benchmarks/reinforcement.py                        # the embedded model, three pairs of 12 steps, about 10 CPU-minutes
    python benchmarks/reinforcement.py --pairs 1 --steps 6    # a look

A step asks 16 prompts of `recipes/tiny/sums.jsonl`, writes 8 answers of at most 48 tokens to each, rewards them and learns once, with the
same LoRA, in single precision on one thread. Real tokens are those of prompts and answers, padding left out; the time is that of the
process within a step, writing included, from the second step on. The answers are each side's own samples of the same policy.

TRL's settings are the best that were found: no gradient checkpointing, which is its default; all 128 answers in one pass or 16 in each,
both are run and the better one counts; transformers' own `generate`, because its continuous batching is many times slower on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
SUMS = HERE.parent / "recipes/tiny/sums.jsonl"
PROMPTS, ANSWERS, LONGEST = 16, 8, 48
RANK, RATE = 16, 1e-4
TRL_PASSES = (128, 16)
"""Answers in one of TRL's passes, tried in turn."""


@dataclass(frozen=True)
class Pace:
    """What one side did: real tokens and seconds of the processor, over all steps but the first, and its mean reward."""

    tokens: float
    seconds: float
    reward: float

    @property
    def rate(self) -> float:
        """Real tokens in a CPU-second."""
        return self.tokens / self.seconds


def luthier_side(folder: Path, steps: int) -> Pace:
    """Luthier's run."""
    import luthier
    from luthier.runs.records import Callback, StepRecord

    clock: list[tuple[float, StepRecord]] = []

    class Watch(Callback):
        def on_step(self, step: StepRecord) -> None:
            clock.append((time.process_time(), step))

    recipe: dict[str, Any] = {
        "name": "run",
        "output": str(folder),
        "model": "tiny",
        "data": {"train": [str(SUMS)], "max_length": 64},
        "stage": {"type": "grpo", "rewards": {"type": "exact_match", "extract": "number"}, "answers": ANSWERS, "show": 0},
        "method": {"type": "lora", "rank": RANK, "alpha": RANK, "dropout": 0},
        "train": {"max_steps": steps + 1, "batch_size": PROMPTS, "learning_rate": RATE, "schedule": "constant", "warmup": 0},
        "report_to": [],
    }
    recipe["stage"]["max_new_tokens"] = LONGEST
    luthier.train(recipe, callbacks=[Watch()], progress=False)
    told = clock[:steps]  # the last one is read after the checkpoint; a step is told of when the next one has been launched
    spent = told[-1][0] - told[0][0]
    records = [record for _, record in told[1:]]
    rewards = [record.extra["reward"] for record in records]
    return Pace(sum(record.tokens for record in records), spent, sum(rewards) / len(rewards))


def trl_side(folder: Path, steps: int, together: int) -> Pace:
    """TRL's run."""
    import re

    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    import luthier.models.tiny as tiny

    rows = [json.loads(line) for line in SUMS.read_text("utf-8").splitlines()]
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": row["prompt"]}], "sum": row["reference"]} for row in rows])
    clock, rewards = [], []

    def right(completions: list[Any], sum: list[str], **_: Any) -> list[float]:  # the column's name
        found = [re.findall(r"\d+", answer[0]["content"]) for answer in completions]
        return [float(bool(numbers) and numbers[-1] == wanted) for numbers, wanted in zip(found, sum, strict=True)]

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "num_tokens" in logs:
                clock.append((time.process_time(), logs["num_tokens"]))
                rewards.append(logs["reward"])

    config = GRPOConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=together,
        gradient_accumulation_steps=PROMPTS * ANSWERS // together,
        num_generations=ANSWERS,
        max_completion_length=LONGEST,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        beta=0.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )
    adapter = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    folder_of_model = str(Path(tiny.__path__[0]))
    GRPOTrainer(folder_of_model, right, args=config, train_dataset=data, peft_config=adapter, callbacks=[Watch()]).train()
    spent, tokens = (clock[-1][i] - clock[0][i] for i in (0, 1))
    return Pace(tokens, spent, sum(rewards[1:]) / len(rewards[1:]))


def measured(side: str, steps: int, together: int = 0) -> Pace:
    """One side in a process of its own, on one thread."""
    command = [sys.executable, __file__, "--side", side, "--steps", str(steps), "--together", str(together)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Pace(**json.loads(done.stdout.splitlines()[-1]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the pairs and their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--side", choices=("luthier", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--together", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side:
        with tempfile.TemporaryDirectory() as folder:
            one = (
                luthier_side(Path(folder), options.steps)
                if options.side == "luthier"
                else trl_side(Path(folder), options.steps, options.together)
            )
        print(json.dumps({"tokens": one.tokens, "seconds": one.seconds, "reward": one.reward}))
        return
    print("| pair | Luthier | TRL | ratio | reward: Luthier, TRL |\n| --- | --- | --- | --- | --- |")
    ratios = []
    for pair in range(options.pairs):
        ours = measured("luthier", options.steps)
        theirs = max((measured("trl", options.steps, together) for together in TRL_PASSES), key=lambda pace: pace.rate)
        ratios.append(ours.rate / theirs.rate)
        line = f"| {pair + 1} | {ours.rate:.0f} | {theirs.rate:.0f} | {ratios[-1]:.2f} | {ours.reward:.2f}, {theirs.reward:.2f} |"
        print(line, flush=True)
    print(f"\nmedian ratio {median(ratios):.2f}")


if __name__ == "__main__":
    main()
