"""ms-swift's `sft`, with its ChatML template.

Best: one example in a pass, no gradient checkpointing; its packing asks for FlashAttention and is refused on a CPU. Default: one
example in a pass with gradient checkpointing and dropout 0.05 in the adapters.
bf16 is `--torch_dtype bfloat16`: 16-bit weights, and for LoRA float32 adapters under autocast.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from meter import Meter, Task, losses_of_trainer, main


def arguments(task: Task) -> dict[str, Any]:
    """What would stand behind `swift sft`."""
    rows = Path(task.folder, "rows.jsonl")
    turns = [{"query": row["instruction"], "response": row["output"]} for row in task.rows()]
    rows.write_text("\n".join(json.dumps(turn) for turn in turns), encoding="utf-8")
    values: dict[str, Any] = {
        "model": task.model,
        "model_type": "llama",
        "template": "chatml",
        "dataset": str(rows),
        "split_dataset_ratio": 0,
        "dataset_shuffle": "false",
        "train_dataloader_shuffle": "false",
        "max_length": task.max_length,
        "tuner_type": task.method,
        "torch_dtype": "bfloat16" if task.precision == "bf16" else "float32",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": task.examples,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "weight_decay": 0,
        "max_grad_norm": 0,
        "adam_beta2": 0.999,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": "true",
        "output_dir": f"{task.folder}/out",
    }
    if task.method == "lora":
        values |= {"lora_rank": task.rank, "lora_alpha": task.alpha, "target_modules": "all-linear"}
    if task.best:
        values |= {"gradient_checkpointing": "false"} | ({"lora_dropout": 0} if task.method == "lora" else {})
    return values


def train(task: Task, meter: Meter) -> None:
    from swift import sft_main

    losses_of_trainer(meter)
    sft_main([text for name, value in arguments(task).items() for text in (f"--{name}", str(value))])


if __name__ == "__main__":
    main(train)
