"""Classification: transformers' own losses and gradients, and F1 by hand, whatever the layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel, RobertaConfig

from luthier.data.batch import Drawn, lay_out
from luthier.data.store import TokenStore
from luthier.models.scorer import Scorer
from luthier.objectives import objective_of, score_values
from luthier.objectives.classification import LABELS, with_f1
from luthier.recipe.schema import Classification
from tests.families import VOCAB
from tests.parity.test_reward import LENGTHS, PAD, gradients, scoring_model
from tests.stores import build_store

NAMES = ("a", "b", "c")
TARGETS: dict[str, Any] = {
    "single": np.array([0, 1, 2, 0, 1, 1, 2, 0], np.float32),
    "multi": np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]] * 2, np.float32),
    "regression": np.linspace(-1, 2, 8, dtype=np.float32),
}
PROBLEMS = {"single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression"}
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": PAD,
}


def encoder(kind: type[BertConfig] | type[RobertaConfig], labels: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = kind(**SIZES, num_labels=labels, max_position_embeddings=128)
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()


def model_of(name: str, labels: int) -> PreTrainedModel:
    encoders = {"bert": BertConfig, "roberta": RobertaConfig}
    return encoder(encoders[name], labels) if name in encoders else scoring_model(name, labels)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return build_store(tmp_path_factory.mktemp("texts") / "store", LENGTHS)


def theirs(model: PreTrainedModel, store: TokenStore, task: str) -> tuple[float, dict[str, Tensor]]:
    """The mean loss that the model itself computes of all texts, padded together."""
    rows = [torch.from_numpy(store.segment(n)[0].astype(np.int64)) for n in range(len(LENGTHS))]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    labels = torch.from_numpy(TARGETS[task])
    model.config.problem_type = PROBLEMS[task]
    model.zero_grad()
    loss = model(input_ids=tokens, attention_mask=mask, labels=labels.long() if task == "single" else labels).loss
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "roberta"])
def test_loss_and_gradients_are_those_of_transformers_in_every_layout(store: TokenStore, name: str, task: str) -> None:
    model = model_of(name, 1 if task == "regression" else len(NAMES)).requires_grad_(True)
    loss, reference = theirs(model, store, task)
    floor = 1e-3 * torch.stack([gradient.norm() for gradient in reference.values()]).norm()
    scorer, rows = Scorer(model), np.arange(len(LENGTHS))
    objective = objective_of(Classification.model_validate({"task": task, "labels": NAMES}))
    drawn = Drawn(store, rows, rows, len(rows), of_segments={LABELS: TARGETS[task]})
    for micro, packing in ((10_000, True), (10_000, False), (60, True), (1, False)):
        model.zero_grad()
        total = 0.0
        for places in lay_out(rows, drawn.lengths, drawn.groups, micro_batch_tokens=micro)[0]:
            batch = drawn.batch(places)
            part = objective(score_values(scorer, batch, packing=packing, at="segment"), batch).total / len(rows)
            part.backward()
            total += part.item()
        assert total == pytest.approx(loss, rel=1e-5)
        for key, gradient in gradients(model).items():
            error = (gradient - reference[key]).norm() / reference[key].norm().clamp_min(floor)
            assert error <= 1e-5, (key, float(error), micro, packing)


def test_f1_is_made_of_counts() -> None:
    """Three classes: a said 2, true 3, both 2 (F1 0.8); b said 2, true 1, both 1 (2/3); c never said nor true (does not count)."""
    means = {"accuracy": 0.75, **{f"hits {n}": v / 4 for n, v in zip(NAMES, (2, 1, 0), strict=True)}}
    means |= {f"said {n}": v / 4 for n, v in zip(NAMES, (2, 2, 0), strict=True)}
    means |= {f"true {n}": v / 4 for n, v in zip(NAMES, (3, 1, 0), strict=True)}
    assert with_f1(means, classes=3) == pytest.approx({"accuracy": 0.75, "f1": (0.8 + 2 / 3) / 2})
