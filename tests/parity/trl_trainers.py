"""TRL's trainers over token ids that are there already, and one loss of theirs with its gradients.

What a trainer is given is what it would have made of text itself; its own collator, its own loss and its own reference pass are run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.families import VOCAB
from tests.parity.tokenizers import plain_tokenizer
from tests.preferences import Row


def _settings(folder: Path, rows: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows,
        "max_length": None,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "train_sampling_strategy": "sequential",
    }


class _DPO(DPOTrainer):  # type: ignore[misc]
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


class _KTO(KTOTrainer):  # type: ignore[misc]
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


class _CPO(CPOTrainer):  # type: ignore[misc]
    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        return sides(feature)


class _ORPO(ORPOTrainer):  # type: ignore[misc]
    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        return sides(feature)


def sides(feature: dict[str, Any]) -> dict[str, Any]:
    """A tokenised row as the trainers without a reference make it."""
    made: dict[str, Any] = {}
    for name in ("chosen", "rejected"):
        prompt, answer = feature["ids"]["prompt"], feature["ids"][name]
        made[f"{name}_input_ids"] = prompt + answer
        made[f"{name}_attention_mask"] = [1] * len(prompt + answer)
        made[f"{name}_labels"] = [-100] * len(prompt) + answer
    return made


def dpo_trainer(model: PreTrainedModel, reference: PreTrainedModel, rows: Sequence[Row], folder: Path) -> DPOTrainer:
    """TRL's trainer for pairs; its loss is chosen afterwards."""
    data = [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for (prompt, chosen, _), (_, rejected, _) in zip(rows[::2], rows[1::2], strict=True)
    ]
    args = DPOConfig(**_settings(folder, len(data)))
    return _DPO(
        model, reference, args=args, train_dataset=Dataset.from_list(data), processing_class=plain_tokenizer(folder, VOCAB)
    )


def kto_trainer(
    model: PreTrainedModel, reference: PreTrainedModel, rows: Sequence[Row], folder: Path, **options: Any
) -> KTOTrainer:
    """TRL's trainer for opinions, given the answer of the example half a batch away for its estimate of the KL divergence."""
    answers, away = [answer for _, answer, _ in rows], (len(rows) + 1) // 2
    data = [
        {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": other, "label": bool(label)}
        for (prompt, answer, label), other in zip(rows, [*answers[away:], *answers[:away]], strict=True)
    ]
    args = KTOConfig(**_settings(folder, len(data)), **options)
    return _KTO(
        model, reference, args=args, train_dataset=Dataset.from_list(data), processing_class=plain_tokenizer(folder, VOCAB)
    )


def reference_free(
    kind: str, model: PreTrainedModel, rows: Sequence[Row], folder: Path, **options: Any
) -> CPOTrainer | ORPOTrainer:
    """TRL's trainer `cpo` or `orpo`."""
    data = [
        {"prompt": "p", "chosen": "c", "rejected": "r", "ids": {"prompt": prompt, "chosen": chosen, "rejected": rejected}}
        for (prompt, chosen, _), (_, rejected, _) in zip(rows[::2], rows[1::2], strict=True)
    ]
    config, trainer = (CPOConfig, _CPO) if kind == "cpo" else (ORPOConfig, _ORPO)
    args = config(**_settings(folder, len(data)) | {"max_length": 512}, **options)
    found: CPOTrainer | ORPOTrainer = trainer(
        model, args=args, train_dataset=Dataset.from_list(data), processing_class=plain_tokenizer(folder, VOCAB)
    )
    return found


def theirs(trainer: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the trainer's whole data as one batch, without dropout."""
    trainer.model.eval()
    trainer.model.zero_grad()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss: Tensor = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
