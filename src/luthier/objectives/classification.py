r"""Classification and regression: what a model says of a text against its label, by transformers' own losses.

For values z [K] of a text:

    single        - log softmax(z)_y                                 one class y
    multi         mean over k of - [y_k log σ(z_k) + (1 - y_k) log σ(-z_k)]      each label for itself
    regression    (z - y)²

Every example counts the same. Reported are `accuracy` (of `multi`: all labels of a text are right), `f1`, and of regression the mean
absolute `error`. F1 of a class is 2 TP / (said + true), and `f1` its mean over the classes that were said or true (macro), computed from
counts over the whole batch or validation set, never as a mean of parts.

The column `labels` of a batch is the class [S], of several labels 0 or 1 for each [S, K], of a regression the number [S].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from luthier.data.batch import Batch
from luthier.data.labels import LABELS, target_of
from luthier.objectives.base import Loss, Objective, Scores
from luthier.recipe.schema import Classification

COUNTS = ("hits", "said", "true")
"""What is counted of each class: said and true, said, true."""


def single(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [S]; what is said and what is true as bool [S, K]."""
    wanted = labels.long()
    said, true = (torch.nn.functional.one_hot(each, values.shape[1]).bool() for each in (values.argmax(1), wanted))
    return cross_entropy(values, wanted, reduction="none"), said, true


def multi(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `single`, each label for itself."""
    return binary_cross_entropy_with_logits(values, labels, reduction="none").mean(1), values > 0, labels > 0.5


LOSSES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = {"single": single, "multi": multi}
"""The loss of each text by the task's name in the recipe."""


def classify(scores: Scores, batch: Batch, *, task: str, metrics: Sequence[str]) -> Loss:
    """The loss of the texts of a batch, and the counts that accuracy and F1 are made of."""
    assert scores.values is not None
    losses, said, true = LOSSES[task](scores.values, batch.columns[LABELS])
    counts = torch.stack([said & true, said, true]).sum(1).flatten().float()
    right = (said == true).all(1).sum().float()
    return Loss(losses.sum(), losses.detach(), dict(zip(metrics, [right, *counts.unbind()], strict=True)))


def regress(scores: Scores, batch: Batch) -> Loss:
    """The squared distance from the number of each text."""
    assert scores.values is not None
    values, wanted = scores.values[:, 0], batch.columns[LABELS]
    losses = mse_loss(values, wanted, reduction="none")
    return Loss(losses.sum(), losses.detach(), {"error": (values.detach() - wanted).abs().sum()})


def with_f1(means: Mapping[str, float], *, classes: int) -> dict[str, float]:
    """Accuracy and macro F1 from the means of `classify`'s metrics; their common denominator does not matter."""
    accuracy, *counts = means.values()
    hits, said, true = (counts[begin : begin + classes] for begin in range(0, 3 * classes, classes))
    scores = [2 * hit / (one + other) for hit, one, other in zip(hits, said, true, strict=True) if one + other]
    return {"accuracy": accuracy, "f1": sum(scores) / max(len(scores), 1)}


def classification(stage: Classification) -> Objective:
    """The objective of stage `classify`."""
    brings = {LABELS: target_of(stage)}
    if stage.task == "regression":
        return Objective("regression", "examples", regress, ("error",), values="segment", brings=brings)
    metrics = ("accuracy", *(f"{count} {name}" for count in COUNTS for name in stage.labels))
    return Objective(
        f"{stage.task}-label classification",
        "examples",
        partial(classify, task=stage.task, metrics=metrics),
        metrics,
        values="segment",
        brings=brings,
        told=partial(with_f1, classes=len(stage.labels)),
    )
