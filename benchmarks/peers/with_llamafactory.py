"""LLaMA-Factory's own entry point, with its ChatML template.

Best: packed into sequences of `pack_length`, no gradient checkpointing. Its plain packing lets packed examples attend to each other,
so it is not quite the same computation. Default: eight examples in a padded pass, gradient checkpointing.
bf16 is its own `bf16: true`: for LoRA a 16-bit base with float32 adapters under autocast. It refuses `pure_bf16` on a CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from meter import Meter, Task, losses_of_trainer, main


def arguments(task: Task) -> dict[str, Any]:
    """What would stand in a YAML file for `llamafactory-cli train`."""
    described = {"bench": {"file_name": task.data, "columns": {"prompt": "instruction", "response": "output"}}}
    Path(task.folder, "dataset_info.json").write_text(json.dumps(described), encoding="utf-8")
    values: dict[str, Any] = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": task.model,
        "template": "chatml",
        "dataset": "bench",
        "dataset_dir": task.folder,
        "output_dir": f"{task.folder}/out",
        "cutoff_len": task.max_length,
        "finetuning_type": task.method,
        "num_train_epochs": 1,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "disable_shuffling": True,
        "bf16": task.precision == "bf16",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": task.examples,
    }
    if task.method == "lora":
        values |= {"lora_rank": task.rank, "lora_alpha": task.alpha, "lora_target": "all"}
    if task.best:
        values |= {"packing": True, "cutoff_len": task.pack_length, "per_device_train_batch_size": task.packs}
        values |= {"disable_gradient_checkpointing": True}
    return values


def train(task: Task, meter: Meter) -> None:
    from llamafactory.train.tuner import run_exp

    losses_of_trainer(meter)
    run_exp(arguments(task))


if __name__ == "__main__":
    main(train)
