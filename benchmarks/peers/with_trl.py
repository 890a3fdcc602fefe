"""TRL's SFTTrainer.

Best: one example in a pass, no gradient checkpointing: no padding at all. TRL's packing lays whole packs into one row under SDPA's full
attention, which is slower on a CPU. Default: eight examples in a padded pass, gradient checkpointing.
bf16 is autocast over float32 weights, TRL's own default, unless `best` finds 16-bit weights faster.
"""

from __future__ import annotations

from typing import Any

from meter import Meter, Task, losses_of_trainer, main


def config(task: Task) -> dict[str, Any]:
    """Arguments of `SFTConfig` for this task."""
    values: dict[str, Any] = {
        "output_dir": task.folder,
        "num_train_epochs": 1,
        "max_length": task.max_length,
        "assistant_only_loss": True,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "train_sampling_strategy": "sequential",
        "bf16": task.precision == "bf16",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "per_device_train_batch_size": task.examples,
    }
    if task.best:
        values |= {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": task.examples,
            "gradient_checkpointing": False,
        }
        if task.precision == "bf16":
            values |= {"bf16": False, "model_init_kwargs": {"dtype": "bfloat16"}}
    return values


def train(task: Task, meter: Meter) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    turns = [
        [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}] for row in task.rows()
    ]
    adapter = LoraConfig(r=task.rank, lora_alpha=task.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    losses_of_trainer(meter)
    trainer = SFTTrainer(
        task.model,
        args=SFTConfig(**config(task)),
        train_dataset=Dataset.from_list([{"messages": messages} for messages in turns]),
        peft_config=adapter if task.method == "lora" else None,
    )
    trainer.train()


if __name__ == "__main__":
    main(train)
