"""Luthier as it comes: one setting, packed without padding, segments isolated."""

from __future__ import annotations

from meter import Meter, Task, main


def train(task: Task, meter: Meter) -> None:
    import luthier

    recipe = {
        "name": "run",
        "output": task.folder,
        "model": task.model,
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
    run = luthier.train(recipe, progress=False)
    for entry in run.metrics():
        if "loss" in entry:
            meter.loss(entry["loss"])


if __name__ == "__main__":
    main(train)
