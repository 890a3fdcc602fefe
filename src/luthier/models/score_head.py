"""The head of a model that scores texts instead of writing them: its labels, its parts, and where they are written.

transformers calls such a model `…ForSequenceClassification`. A decoder has a layer `score` [labels, H] without bias, which reads the
state of a text's last token that is not padding; an encoder has one or two layers over its first token. What lies outside the body is
the head, and a pooler that the folder did not hold: they are trained by every method, because they begin at random. Dense layers may stand
before its last matrix (`dense_head`).

A whole model says its labels in `config.json`. An adapter's folder has no config, so they lie beside it in `labels.json`, which PEFT passes
over.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from luthier.files import write_json

FILE = "labels.json"
"""What an adapter's folder says of the labels."""
DENSE = "luthier_dense"
"""Field of a config: the widths of the dense layers in the head. transformers keeps it and knows nothing of it."""
FRESH = "luthier_fresh"
"""Attribute of a model: the names of its modules that were in no file, and so were drawn at random."""
KIND = "ForSequenceClassification"
"""What the names of such models end in."""

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]

PROBLEMS: dict[str, Problem] = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
"""The recipe's name of a task → transformers'."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What each value of a scoring model stands for, and what a head has to be made of to give them.

    Attributes:
        names: of the values, in their order.
        problem: as transformers calls what is solved; None for a reward.
        dense: widths of the dense layers before the head's last matrix.
    """

    names: tuple[str, ...]
    problem: Problem | None = None
    dense: tuple[int, ...] = ()

    def tell(self, config: PreTrainedConfig) -> None:
        """Write the labels into a model's config, in place."""
        config.num_labels = len(self.names)
        config.id2label = dict(enumerate(self.names))
        config.label2id = {name: number for number, name in enumerate(self.names)}
        config.problem_type = self.problem
        setattr(config, DENSE, list(self.dense) or None)

    def write(self, folder: Path) -> None:
        """Lay them beside an adapter."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def of_config(cls, config: PreTrainedConfig) -> Labels:
        """Those that a config names."""
        names = {int(number): str(name) for number, name in config.id2label.items()}
        dense = tuple(getattr(config, DENSE, None) or ())
        return cls(tuple(names[number] for number in sorted(names)), config.problem_type, dense)

    @classmethod
    def of_adapter(cls, folder: Path) -> Labels | None:
        """Those that lie beside an adapter; None where none do."""
        file = folder / FILE
        if not file.is_file():
            return None
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return cls(tuple(value["names"]), value["problem"], tuple(value.get("dense", ())))


REWARD = Labels(("reward",))
"""The one label of a reward model."""


def is_scorer(model: nn.Module) -> bool:
    """Whether a model scores texts."""
    return type(model).__name__.endswith(KIND)


def head_names(model: PreTrainedModel) -> tuple[str, ...]:
    """The modules that turn states into scores, by dotted name, in their order; none of a model that writes."""
    if not is_scorer(model):
        return ()
    own = [name for name, part in model.named_children() if part is not model.base_model and any(True for _ in part.parameters())]
    return (*(name for name in getattr(model, FRESH, ()) if name not in own), *own)


def output_layer(model: PreTrainedModel) -> nn.Module | None:
    """The layer that writes logits or scores; None where it is no single one."""
    return model.get_submodule(names[-1]) if (names := head_names(model)) else model.get_output_embeddings()


def last_matrix(model: PreTrainedModel) -> nn.Module:
    """The last layer of the head of a model that scores texts."""
    head = output_layer(model)
    assert head is not None
    return [part for part in head.modules() if getattr(getattr(part, "weight", None), "ndim", 0) == 2][-1]
