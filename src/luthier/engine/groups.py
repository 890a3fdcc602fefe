"""Which trained weights share a learning rate and a weight decay, and what role each plays in the model.

A group is settled by three questions, asked of every trained parameter: what is it (embedding, head, matrix of a layer, vector), does one
of the recipe's patterns name it, and does it decay. Norms and biases never decay unless a pattern says so: pulling a norm's weight towards
zero changes the scale of its layer, and a bias has too few numbers to overfit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch.nn import Parameter
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.checkpointing import decoder_layers
from luthier.models.score_head import output_layer
from luthier.recipe.schema import Train


@dataclass(frozen=True, slots=True)
class Roles:
    """What an optimizer may ask about the model; the default knows nothing and takes every matrix for one of a layer.

    Attributes:
        embeddings: name of the module of the token embeddings.
        head: name of the output head's module, or the embeddings' where they are tied.
        layers: names of the decoder layers, in order.
        head_size: numbers in one attention head's rows of a query or key matrix, or 0.
    """

    embeddings: str = "\0"
    head: str = "\0"
    layers: tuple[str, ...] = ()
    head_size: int = 0

    @classmethod
    def of(cls, model: PreTrainedModel) -> Roles:
        """The roles of a model's parameters."""
        names = {module: name for name, module in model.named_modules()}
        config = model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", 0)
        size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
        return cls(
            embeddings=names.get(model.get_input_embeddings(), "\0"),
            head=names.get(output_layer(model), "\0"),
            layers=tuple(names[layer] for layer in decoder_layers(model)),
            head_size=size * config.hidden_size,
        )

    def is_embedding(self, name: str) -> bool:
        """Whether a parameter lies in the token embeddings."""
        return name.startswith(f"{self.embeddings}.")

    def is_head(self, name: str) -> bool:
        """Whether a parameter lies in the output head."""
        return name.startswith(f"{self.head}.")

    def is_hidden_matrix(self, name: str, parameter: Parameter) -> bool:
        """Whether a parameter is a matrix that maps hidden states to hidden states: what Muon, GaLore and APOLLO are for."""
        return parameter.ndim == 2 and not self.is_embedding(name) and not self.is_head(name) and not name.endswith("bias")


@dataclass(frozen=True, slots=True)
class Group:
    """Trained parameters with the same settings.

    Attributes:
        names: their names, in the model's order.
        ratio: their learning rate as a multiple of `train.learning_rate`.
        weight_decay: their weight decay.
    """

    names: tuple[str, ...]
    ratio: float
    weight_decay: float


def groups_of(
    parameters: Mapping[str, Parameter], train: Train, roles: Roles, rates: Mapping[str, float] | None = None
) -> list[Group]:
    """Sort the trained parameters into groups; groups stand in the order of their first parameter.

    Args:
        parameters: the trained parameters by name.
        train: the recipe's `train` section.
        roles: what they are in the model.
        rates: learning rate of some of them as the method has it (LoRA+), as a multiple; what the recipe names comes before it.

    Raises:
        UserError: a pattern, or a rate for embeddings or head, fits nothing that is trained.
    """
    _check(parameters, train, roles)
    sorted_in: dict[tuple[float, float], list[str]] = {}
    for name, parameter in parameters.items():
        sorted_in.setdefault(_settings(name, parameter, train, roles, (rates or {}).get(name, 1.0)), []).append(name)
    return [Group(tuple(names), ratio, decay) for (ratio, decay), names in sorted_in.items()]


def _settings(name: str, parameter: Parameter, train: Train, roles: Roles, usual: float) -> tuple[float, float]:
    """Ratio of the learning rate (`usual` unless the recipe says otherwise), and weight decay, of one parameter."""
    rate = None
    if roles.is_embedding(name) and train.embedding_learning_rate:
        rate = train.embedding_learning_rate
    elif roles.is_head(name) and train.head_learning_rate:
        rate = train.head_learning_rate
    decay = train.weight_decay if parameter.ndim >= 2 and not name.endswith("bias") else 0.0
    named = next((group for group in train.groups if re.search(group.match, name)), None)
    if named is not None:
        rate = named.learning_rate or rate
        decay = decay if named.weight_decay is None else named.weight_decay
    return usual if rate is None else rate / train.learning_rate, decay


def _check(parameters: Mapping[str, Parameter], train: Train, roles: Roles) -> None:
    for index, group in enumerate(train.groups):
        if not any(re.search(group.match, name) for name in parameters):
            raise UserError(
                f"`{group.match}` fits none of the {len(parameters)} trained parameters",
                where=f"train.groups.{index}.match",
                hint=f"Their names look like `{next(iter(parameters))}`.",
            )
    for field, fits in (("embedding_learning_rate", roles.is_embedding), ("head_learning_rate", roles.is_head)):
        if getattr(train, field) and not any(map(fits, parameters)):
            raise UserError(
                "nothing of it is trained",
                where=f"train.{field}",
                hint="Train it (`method.modules_to_save`, `method.embeddings`, `method.head`, `full`) or leave the rate out."
                " A head that is tied to the embeddings has their rate.",
            )
