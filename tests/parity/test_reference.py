"""Our loss and gradients are those of transformers' plain cross-entropy, and of TRL's trainer, on the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.data.batch import make_batch
from luthier.data.store import TokenStore
from luthier.models.policy import Policy
from luthier.objectives import LIKELIHOOD, Objective, score
from luthier.objectives.likelihood import sft
from luthier.recipe.schema import SupervisedFineTuning
from tests.families import CONFIGS, VOCAB, build
from tests.stores import build_store

LENGTHS = [37, 12, 50, 8, 23]
IGNORED = -100


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return build_store(tmp_path_factory.mktemp("rows") / "store", LENGTHS, vocabulary=VOCAB)


def rows_of(store: TokenStore) -> list[dict[str, list[int]]]:
    """The store as `input_ids` and `labels`, the way transformers and TRL take them."""
    rows = []
    for index in range(len(store)):
        tokens, weight = store.segment(index)
        labels = [int(token) if w else IGNORED for token, w in zip(tokens, weight, strict=True)]
        rows.append({"input_ids": tokens.tolist(), "labels": labels})
    return rows


def ours(model: PreTrainedModel, store: TokenStore, objective: Objective = LIKELIHOOD) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    batch = make_batch(store, range(len(store)))
    loss = objective(score(Policy(model), batch, packing=True), batch).total / batch.weight.sum()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    floor = 1e-3 * torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    for name, gradient in mine.items():
        error = (gradient - theirs[name]).norm() / theirs[name].norm().clamp_min(floor)
        assert error <= 1e-5, (name, float(error))


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_equals_transformers(store: TokenStore, family: str) -> None:
    model = build(family).requires_grad_(True)
    loss, gradients = ours(model, store)
    model.zero_grad()
    rows = rows_of(store)
    supervised = sum(label != IGNORED for row in rows for label in row["labels"])
    total = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        part = torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum") / supervised
        part.backward()
        total += part.item()
    assert loss == pytest.approx(total, rel=1e-5)
    assert_same(gradients, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), [("llama", "nll"), ("gpt2", "nll"), ("qwen3", "nll"), ("qwen3", "dft")])
def test_equals_trl(store: TokenStore, family: str, kind: Literal["nll", "dft"], tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from tests.parity.tokenizers import plain_tokenizer

    model = build(family).requires_grad_(True)
    loss, gradients = ours(model, store, sft(SupervisedFineTuning(loss=kind)))
    model.zero_grad()
    config = SFTConfig(
        loss_type=kind,
        output_dir=str(tmp_path),
        per_device_train_batch_size=len(store),
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        dataset_kwargs={"skip_prepare_dataset": True},
        shuffle_dataset=False,
        train_sampling_strategy="sequential",
    )
    trainer = SFTTrainer(
        model, args=config, train_dataset=Dataset.from_list(rows_of(store)), processing_class=plain_tokenizer(tmp_path, VOCAB)
    )
    trainer.model.eval()  # as ours: no dropout
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    assert_same(gradients, {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None})
