"""Direct preference optimisation through Luthier and through TRL's DPOTrainer: real tokens per CPU-second.

    python benchmarks/preferences.py                          # LoRA in fp32 and bf16, three pairs of runs each
    python benchmarks/preferences.py --only lora-fp32 --pairs 1

The model is the random Llama of 27.8 million weights of the other benchmarks (`workload.py`), the pairs are the first 40 of the file that
no side has to cut at 512 tokens, in the same order, 8 pairs in an optimizer step, the reference computed with each step. Measured as in
`bench.py`: ids that are not padding in a pass with gradients, over the CPU time from the end of step 1 to the end of the last step.

TRL runs without gradient checkpointing, in the faster of two settings: all pairs of a step in one padded pass (`together`), or a pair at
a time, where only the shorter answer is padded (`apart`). The first loss of a step is log 2 on both sides; adapters start from each side's
own random numbers. Each run is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE / "peers")]

from meter import Meter, Task, losses_of_trainer  # noqa: E402

DATA = HERE.parents[1] / "shared/data/llamafactory/dpo_en_demo.json"
KINDS = ("lora-fp32", "lora-bf16", "full-fp32", "full-bf16")
WAYS = ("together", "apart")
PAIRS, LONGEST = 40, 512
COLUMNS = (
    "what",
    "Luthier",
    "TRL 1.16",
    "its way",
    "ratio (min–max)",
    "computed / real tokens: Luthier, TRL",
    "largest loss difference",
)


def rows_of(source: Path, model: Path) -> list[dict[str, Any]]:
    """The first pairs of which no side is too long, as conversations."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def turns(row: dict[str, Any]) -> dict[str, Any]:
        roles = {"human": "user", "gpt": "assistant", "system": "system"}
        said = {"prompt": row["conversations"], "chosen": [row["chosen"]], "rejected": [row["rejected"]]}
        return {
            name: [{"role": roles[turn["from"]], "content": turn["value"]} for turn in messages]
            for name, messages in said.items()
        }

    def fits(row: dict[str, Any]) -> bool:
        sides = (row["prompt"] + row[side] for side in ("chosen", "rejected"))
        return all(len(tokenizer.apply_chat_template(side, return_dict=True)["input_ids"]) <= LONGEST for side in sides)

    return list(islice(filter(fits, map(turns, json.loads(source.read_text(encoding="utf-8")))), PAIRS))


def with_luthier(task: Task, meter: Meter) -> None:
    """One run of Luthier."""
    import luthier

    recipe = {
        "name": "run",
        "output": task.folder,
        "model": task.model,
        "stage": "dpo",
        "data": {"train": task.data, "max_length": task.max_length},
        "method": {"type": "lora", "rank": task.rank, "alpha": task.alpha} if task.method == "lora" else "full",
        "train": {
            "epochs": 1,
            "batch_size": task.examples,
            "learning_rate": task.learning_rate,
            "schedule": "constant",
            "warmup": 0,
            "max_grad_norm": 0,
            "precision": task.precision,
        },
        "report_to": [],
    }
    for entry in luthier.train(recipe, progress=False).metrics():
        if "loss" in entry:
            meter.loss(entry["loss"])


def with_trl(task: Task, meter: Meter) -> None:
    """One run of TRL."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    losses_of_trainer(meter)
    together = task.setting == "together"
    adapter = LoraConfig(r=task.rank, lora_alpha=task.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    config = DPOConfig(
        output_dir=task.folder,
        num_train_epochs=1,
        max_length=task.max_length,
        learning_rate=task.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=task.examples if together else 1,
        gradient_accumulation_steps=1 if together else task.examples,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    dtype = torch.bfloat16 if task.precision == "bf16" else torch.float32
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(task.model, dtype=dtype),
        args=config,
        train_dataset=Dataset.from_list(json.loads(Path(task.data).read_text(encoding="utf-8"))),
        processing_class=None,
        peft_config=adapter if task.method == "lora" else None,
    )
    trainer.train()


def measure(side: str, kind: str, way: str, data: Path, model: Path) -> dict[str, Any]:
    """One run in a process of its own: its `speed`, `padding` and `losses`."""
    method, precision = kind.split("-")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = {"method": method, "precision": precision, "setting": way, "model": str(model), "data": str(data)}
        task = Task(**values, folder=str(folder), report=str(folder / "report.json"), launched=time.time(), max_length=LONGEST)
        (folder / "task.json").write_text(json.dumps(asdict(task)), encoding="utf-8")
        alone = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "LUTHIER_CACHE": str(folder / "cache")}
        command = [sys.executable, __file__, "--side", side, "--task", str(folder / "task.json")]
        done = subprocess.run(command, env=os.environ | alone, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    steps = report["steps"]
    spent = steps[-1]["cpu"] - steps[0]["cpu"]
    return {
        "speed": sum(step["tokens"] for step in steps[1:]) / spent,
        "padding": sum(step["computed"] for step in steps) / sum(step["tokens"] for step in steps),
        "losses": report["losses"],
    }


def line(kind: str, runs: list[tuple[dict[str, Any], dict[str, dict[str, Any]]]]) -> str:
    """One line of the table, TRL in the way whose median is higher."""
    way = max(WAYS, key=lambda name: statistics.median(theirs[name]["speed"] for _, theirs in runs))
    pairs = [(ours, theirs[way]) for ours, theirs in runs]
    ratios = [ours["speed"] / theirs["speed"] for ours, theirs in pairs]
    apart = max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours["losses"], theirs["losses"], strict=True))
    speeds = [f"{statistics.median(run['speed'] for run in side):,.0f}" for side in zip(*pairs, strict=True)]
    middle = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    padding = ", ".join(f"{run['padding']:.2f}" for run in pairs[0])
    return f"| {' | '.join([kind, *speeds, way, middle, padding, f'{apart:.0e}'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS[:2], help="what to measure")
    parser.add_argument("--pairs", type=int, default=3, help="rounds")
    parser.add_argument("--side", choices=("luthier", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        task = Task(**json.loads(chosen.task.read_text(encoding="utf-8")))
        meter = Meter(task)
        with meter.measuring():
            (with_luthier if chosen.side == "luthier" else with_trl)(task, meter)
        return
    import workload

    print(f"load {os.getloadavg()[0]:.1f} at the start\n")
    print(f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(['---'] * len(COLUMNS))} |", sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        model = workload.make_model(Path(name) / "model")
        ours, theirs = workload.write_rows(rows_of(DATA, model), Path(name), "pairs")
        for kind in chosen.only:
            runs = []
            for _ in range(chosen.pairs):
                first = measure("trl", kind, WAYS[0], theirs, model)
                ourselves = measure("luthier", kind, "", ours, model)
                runs.append((ourselves, {WAYS[0]: first, WAYS[1]: measure("trl", kind, WAYS[1], theirs, model)}))
            print(line(kind, runs), flush=True)


if __name__ == "__main__":
    main()
