"""litgpt's `finetune_lora` and `finetune_full`; its defaults (micro-batch 1, no gradient checkpointing) are its best on a CPU.

bf16 is `bf16-true`: 16-bit weights, gradients and moments. litgpt has no tied weights, so `full` trains a head of its own: 32.0
million parameters. It weighs examples, not tokens; the loss noted here is the mean over the tokens of a step, as the others report it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from meter import Meter, Task, main

FOLDER = "litgpt"
SHAPE = {
    "name": "bench",
    "block_size": 1024,
    "vocab_size": 8192,
    "padded_vocab_size": 8192,
    "n_layer": 8,
    "n_head": 8,
    "n_query_groups": 4,
    "n_embd": 512,
    "intermediate_size": 1408,
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "bias": False,
    "norm_class_name": "RMSNorm",
    "norm_eps": 1e-6,
    "mlp_class_name": "LLaMAMLP",
}


def prepare(model: Path) -> None:
    """Convert the model into litgpt's own form, in a folder below it."""
    import shutil

    import torch
    import yaml
    from litgpt import Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from safetensors.torch import load_file

    folder = model / FOLDER
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        shutil.copy(model / name, folder)
    state: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(Config(**SHAPE), {}, state, load_file(model / "model.safetensors"))
    torch.save(state, folder / "lit_model.pth")
    (folder / "model_config.yaml").write_text(yaml.safe_dump(SHAPE), encoding="utf-8")


def data_of(task: Task) -> Any:
    """The rows in litgpt's JSON module, in their order, with the ChatML text of the other sides."""
    from litgpt.data import JSON
    from litgpt.prompts import PromptStyle
    from torch.utils.data import DataLoader

    class ChatML(PromptStyle):
        def apply(self, prompt: str, **_: Any) -> str:
            return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"

    class InOrder(JSON):
        def train_dataloader(self) -> DataLoader:
            shuffled = super().train_dataloader()
            return DataLoader(shuffled.dataset, batch_size=self.batch_size, collate_fn=shuffled.collate_fn)

    rows = task.rows()
    for name, part in (("train", rows), ("val", rows[:2])):
        Path(task.folder, f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    return InOrder(json_path=Path(task.folder), mask_prompt=True, prompt_style=ChatML(), num_workers=0)


def note_losses(module: Any, meter: Meter) -> None:
    """Mean loss over the supervised tokens of each step, from litgpt's own loss function."""
    import torch

    loss_of, examples, sums = module.chunked_cross_entropy, meter.task.examples, []

    def noted(logits: Any, targets: torch.Tensor, **options: Any) -> torch.Tensor:
        loss = loss_of(logits, targets, **options)
        if torch.is_grad_enabled():
            sums.append((loss.detach(), int((targets != -100).sum())))
            if len(sums) == examples:
                meter.loss(sum(float(value) * count for value, count in sums) / sum(count for _, count in sums))
                sums.clear()
        return loss

    module.chunked_cross_entropy = noted


def constant_rate(optimizer: Any, **_: Any) -> Any:
    """In place of litgpt's schedule, which cannot do without warm-up."""
    import torch

    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


def train(task: Task, meter: Meter) -> None:
    import litgpt.finetune.full
    import litgpt.finetune.lora
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.tokenizer import Tokenizer

    module = litgpt.finetune.lora if task.method == "lora" else litgpt.finetune.full
    module.get_lr_scheduler = constant_rate
    note_losses(module, meter)
    module.merge_lora = lambda **_: None  # it reads the adapter's shape from the command line, and comes after the last step

    class EndsWithLineBreak(Tokenizer):
        """litgpt ends an answer with one token; the other sides also supervise the line break behind it."""

        def encode(self, string: str, *more: Any, eos: bool = False, **options: Any) -> Any:
            return super().encode(f"{string}<|im_end|>\n" if eos else string, *more, **options)

    module.Tokenizer = EndsWithLineBreak
    adapters = {"lora_r": task.rank, "lora_alpha": task.alpha, "lora_dropout": 0.0}
    adapters |= {f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp")}
    rate = {"lr": task.learning_rate, "weight_decay": 0.0, "betas": (0.9, 0.999)}
    module.setup(
        checkpoint_dir=Path(task.model, FOLDER),
        out_dir=Path(task.folder, "out"),
        precision="bf16-true" if task.precision == "bf16" else "32-true",
        data=data_of(task),
        train=TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=task.examples,
            micro_batch_size=1,
            lr_warmup_steps=1,
            epochs=1,
            max_seq_length=task.max_length,
        ),
        eval=EvalArgs(interval=1000, max_new_tokens=1, max_iters=2, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": rate},
        **(adapters if task.method == "lora" else {}),
    )


if __name__ == "__main__":
    main(train, prepare)
