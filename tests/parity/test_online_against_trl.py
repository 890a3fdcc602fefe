"""Online DPO gives TRL's losses and gradients on the same recorded rollout: of its online trainer, and of its DPO trainer on the pairs."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from luthier.data.batch import Drawn
from luthier.engine.judged import Judged
from luthier.engine.pairs import pair_store, paired
from luthier.generation.bulk import Written
from luthier.objectives import objective_of
from luthier.recipe.schema import OnlineDPO
from tests.families import VOCAB
from tests.preferences import Row, assert_same, beside, drawn_of, learnt, pairs

ROWS = pairs()
"""Two answers to each of five prompts."""
REWARDS = np.array([0.3, 0.1, -1.0, 2.0, 0.5, 0.4, 0.0, 0.2, 3.0, -3.0])
"""The second answer is the better one of the second and the fourth prompt."""


def rollout() -> Judged:
    """The recorded rollout."""
    prompts = [(prompt, [3], 0) for prompt, _, _ in ROWS[::2]]
    store = drawn_of(prompts, paired=False).store
    cut = store.offsets[1:] - 1  # a prompt's row holds nothing but the prompt
    keep = np.setdiff1d(np.arange(len(store.tokens)), cut)
    store.tokens, store.weight, store.offsets = store.tokens[keep], store.weight[keep], store.offsets - np.arange(len(store) + 1)
    written = [Written(np.array(a, np.int32), np.zeros(len(a), np.float32), "", True) for _, a, _ in ROWS]
    member = np.repeat(np.arange(len(prompts)), 2)
    return Judged(written, member, member, REWARDS, [], store)


def drawn() -> Drawn:
    """What a step learns from it."""
    store = pair_store(paired(rollout(), 0.0)[0])
    rows = np.arange(len(store))
    return Drawn(store, rows, rows // 2 << 32 | rows // 2, len(rows) // 2)


def ordered() -> list[Row]:
    """The same as pairs of a data set, the better answer first."""
    found: list[Row] = []
    for place in range(0, len(ROWS), 2):
        better, worse = sorted((place, place + 1), key=lambda row: -REWARDS[row])
        found += [(*ROWS[better][:2], 1), (*ROWS[worse][:2], 0)]
    return found


def test_it_is_the_online_trainer(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    from tests.parity.tokenizers import plain_tokenizer

    model, reference = beside("llama")
    config = OnlineDPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=5, use_cpu=True, bf16=False, gradient_checkpointing=False,
        report_to=[], disable_dropout=True, missing_eos_penalty=None, beta=0.1, temperature=1.0, max_length=512,
    )  # fmt: skip
    trainer = OnlineDPOTrainer(
        model=model,
        ref_model=reference,
        args=config,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list([{"prompt": "w5 w6"}] * 5),
        processing_class=plain_tokenizer(tmp_path, VOCAB),
    )
    trainer._generate = MethodType(lambda *_: recorded(), trainer)
    trainer._calculate_rewards_from_functions = MethodType(lambda *_, **__: torch.from_numpy(halves(REWARDS)), trainer)
    trainer.model.zero_grad()
    expected = trainer.training_step(trainer.model, {"prompt": ["w5 w6"] * 5}).item()
    theirs = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    loss, gradients, told = learnt(*beside("llama"), objective_of(OnlineDPO(rewards="exact_match")), drawn())
    assert loss == pytest.approx(expected, rel=1e-5)
    assert_same(gradients, theirs)
    assert told["margin"] == pytest.approx(trainer.stats["rewards/margins"][-1], rel=1e-4)
    assert told["accuracy"] == pytest.approx(trainer.stats["rewards/accuracies"][-1])


def halves(values: np.ndarray) -> np.ndarray:
    """First the first answers to all prompts, then the second ones."""
    return np.concatenate([values[::2], values[1::2]])


def recorded() -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
    """The rollout as the trainer takes it: prompts padded to the left, answers to the right."""
    rows = ROWS[::2] + ROWS[1::2]
    prompts = [torch.tensor(prompt) for prompt, _, _ in rows]
    answers = [torch.tensor(answer) for _, answer, _ in rows]
    padded: list[Tensor] = []
    for sides, where in ((prompts, "left"), (answers, "right")):
        padded.append(pad_sequence(sides, batch_first=True, padding_side=where))
        padded.append(pad_sequence([torch.ones_like(side) for side in sides], batch_first=True, padding_side=where))
    return padded[0], padded[1], padded[2], padded[3], None


@pytest.fixture(scope="module")
def trl() -> ModuleType:
    """Imported late, because TRL takes seconds."""
    return importlib.import_module("tests.parity.trl_trainers")


@pytest.fixture(scope="module")
def trainer(trl: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One trainer for all losses of pairs."""
    return trl.dpo_trainer(*beside("llama"), ordered(), tmp_path_factory.mktemp("dpo"))


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "robust", "nca_pair", "apo_zero", "aot"])
def test_losses_are_those_of_dpo_on_the_pairs(trl: ModuleType, trainer: Any, loss: str) -> None:
    smoothing = 0.1 if loss == "robust" else 0.0
    stage = OnlineDPO(rewards="exact_match", loss=loss, beta=0.3, label_smoothing=smoothing)  # type: ignore[arg-type]
    trainer.loss_types, trainer.beta, trainer.label_smoothing = [loss], 0.3, smoothing
    expected, theirs = trl.theirs(trainer)
    for micro in (10_000, 70):
        found, gradients, _ = learnt(*beside("llama"), objective_of(stage), drawn(), micro=micro)
        assert found == pytest.approx(expected, rel=1e-5)
        assert_same(gradients, theirs)
