"""Reward models: TRL's loss and gradients, whatever the family, the layout or the padding token."""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from luthier.data.batch import Drawn, lay_out
from luthier.data.store import TokenStore
from luthier.models.scorer import Scorer
from luthier.objectives import objective_of, score_values
from luthier.objectives.reward import MARGIN
from luthier.recipe.schema import RewardModelling
from tests.families import CONFIGS
from tests.stores import build_store

LENGTHS = [37, 12, 50, 8, 23, 41, 5, 19]
MARGINS = np.repeat([0.5, 0.0, 1.0, 0.25], 2).astype(np.float32)
FAMILIES = ("llama", "gpt2", "bloom", "gemma2", "mixtral", "qwen3", "glm", "opt")
PAD = 0


def scoring_model(family: str, labels: int = 1) -> PreTrainedModel:
    """A random model with a head that scores."""
    config = CONFIGS[family]()
    config.num_labels, config.use_cache, config.pad_token_id = labels, False, PAD
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model.eval()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    pairs = [index // 2 for index in range(len(LENGTHS))]
    labels = [1 - index % 2 for index in range(len(LENGTHS))]
    return build_store(tmp_path_factory.mktemp("pairs") / "store", LENGTHS, groups=pairs, labels=labels)


def drawn_of(store: TokenStore) -> Drawn:
    rows = np.arange(len(LENGTHS))
    return Drawn(store, rows, store.group[rows].astype(np.int64), len(rows) // 2, of_segments={MARGIN: MARGINS})


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def ours(model: PreTrainedModel, store: TokenStore, *, micro: int, packing: bool) -> tuple[float, dict[str, Tensor]]:
    scorer, drawn, total = Scorer(model.requires_grad_(True)), drawn_of(store), 0.0
    objective = objective_of(RewardModelling(centering=0.01))
    model.zero_grad()
    for places in lay_out(np.arange(len(LENGTHS)), drawn.lengths, drawn.groups, micro_batch_tokens=micro)[0]:
        batch = drawn.batch(places)
        loss = objective(score_values(scorer, batch, packing=packing, at="segment"), batch).total / 4
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def theirs(model: PreTrainedModel, store: TokenStore) -> tuple[float, dict[str, Tensor]]:
    """The loss function and the collator of TRL's trainer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer
    pairs = [
        {
            "chosen_ids": store.segment(n)[0].tolist(),
            "rejected_ids": store.segment(n + 1)[0].tolist(),
            "margin": float(MARGINS[n]),
        }
        for n in range(0, len(LENGTHS), 2)
    ]
    same: Any = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer: Any = SimpleNamespace(
        model=model,
        accelerator=same,
        args=SimpleNamespace(center_rewards_coefficient=0.01),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    model.zero_grad()
    loss = RewardTrainer.compute_loss(trainer, model, DataCollatorForPreference(pad_token_id=PAD)(pairs))
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_trl_in_every_layout(store: TokenStore, family: str) -> None:
    model = scoring_model(family)
    loss, reference = theirs(model, store)
    floor = 1e-3 * torch.stack([gradient.norm() for gradient in reference.values()]).norm()
    for micro, packing in ((10_000, True), (10_000, False), (100, True), (1, False)):
        found, mine = ours(model, store, micro=micro, packing=packing)
        assert found == pytest.approx(loss, rel=1e-5)
        assert mine.keys() == reference.keys()
        for name, gradient in mine.items():
            error = (gradient - reference[name]).norm() / reference[name].norm().clamp_min(floor)
            assert error <= 1e-5, (name, float(error), micro, packing)


@torch.no_grad()
def test_a_text_that_ends_in_the_padding_token_is_read_where_transformers_reads_it(store: TokenStore) -> None:
    model = scoring_model("llama", labels=3)
    scorer = Scorer(model)
    batch = drawn_of(store).batch(np.arange(len(LENGTHS)))
    batch.tokens[batch.cu_seqlens[1:].long() - 1] = PAD
    batch.tokens[batch.cu_seqlens[1] - 2] = PAD
    batch.tokens[batch.cu_seqlens[6] : batch.cu_seqlens[7]] = PAD  # nothing else in it
    rows = batch.tokens.split(LENGTHS)
    expected = torch.cat([model(input_ids=row[None]).logits for row in rows])
    torch.testing.assert_close(scorer.values(batch, packing=True), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_values_of_tokens_are_read_before_each_target(store: TokenStore) -> None:
    model = scoring_model("llama")
    scorer, batch = Scorer(model), drawn_of(store).batch(np.arange(3))
    found = scorer.token_values(batch, packing=True)
    whole = model.score(model.model(input_ids=batch.tokens[None, : LENGTHS[0]], use_cache=False).last_hidden_state)[0, :, 0]
    first = batch.targets[batch.target_segments == 0]
    torch.testing.assert_close(found[: len(first)], whole[first - 1], atol=1e-5, rtol=1e-5)
