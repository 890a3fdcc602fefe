"""Which weights move: a recipe's method applied to a model.

A method freezes what stays, adds what is new, and hands back the trained parameters by name in the model's own order. That order is
part of a run's state (optimizer moments are stored by it), so it depends on the model and the recipe alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters import borrowed
from luthier.models.adapters.format import kind_of, read_config
from luthier.models.adapters.merge import merge
from luthier.models.adapters.targets import check_names
from luthier.models.adapters.tokens import room_needed
from luthier.models.checkpointing import decoder_layers
from luthier.models.expand import expand
from luthier.models.legacy.names import modern_names
from luthier.models.linear import count_weights, quantised_layers
from luthier.models.low_rank import apply_low_rank, load_low_rank, rates_of
from luthier.models.mixture import freeze_routers, routers
from luthier.models.score_head import head_names
from luthier.recipe.schema import AdaLoRA, Freeze, Full, LlamaPro, LoRA, Method

if TYPE_CHECKING:
    from luthier.data.batch import Drawn


@dataclass(frozen=True, slots=True)
class Trainable:
    """The trained parameters.

    Attributes:
        parameters: name → parameter, in module order; a shared (tied) one appears once.
        total: numbers in the whole model, adapters included.
        count: numbers that are trained.
        notes: what the user should know, a sentence each.
        rates: learning rate of some parameters, as a multiple of the recipe's.
    """

    parameters: dict[str, nn.Parameter]
    total: int
    count: int
    notes: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.count:,} of {self.total:,} parameters are trained ({self.count / self.total:.2%})"


def apply_method(
    model: PreTrainedModel,
    method: Method,
    *,
    seed: int,
    adapter: Path | None = None,
    saved: Path | None = None,
    tokens: tuple[int, ...] = (),
    drawn: Iterable[Drawn] = (),
) -> Trainable:
    """Make `model` ready for training, in place. A head that scores texts is trained by every method.

    Args:
        model: a plain model.
        method: the recipe's `method` section.
        seed: seed of an adapter's first values.
        adapter: folder of an adapter to continue from, of the same kind. Its own settings hold (but the recipe's dropout, with
            `lora`). With `full`, `freeze` and `llama_pro` it is merged first.
        saved: folder of the checkpoint that is loaded next: a LoRA adapter gets the form that it has there, and no first values.
        tokens: ids of the tokens whose rows are trained beside a LoRA adapter.
        drawn: what the first steps learn from, for a start that looks at the data.

    Raises:
        UserError: a name that fits nothing, or an adapter that does not fit.
    """
    notes: tuple[str, ...] = ()
    scores = head_names(model)
    if isinstance(method, LoRA | AdaLoRA):
        method = method.model_copy(update={"modules_to_save": (*method.modules_to_save, *scores)})
        notes = apply_low_rank(model, method, seed=seed, adapter=adapter, saved=saved, tokens=tokens, drawn=drawn)
        return trainable(model, notes, rates_of(model, method))
    if isinstance(method, Full | Freeze | LlamaPro):
        if adapter is not None:
            load_adapter(model, adapter, body=True)
            merge(model)
        if quantised_layers(model):
            raise UserError("weights in few bits cannot be trained", where="method", hint="Use `method: lora`.")
        if isinstance(method, Full):
            model.requires_grad_(True)
            notes = _keep_routers(model, method)
        elif isinstance(method, LlamaPro):
            expand(model, method.blocks)
        else:
            _freeze(model, method)
            notes = _keep_routers(model, method, but=modern_names((*method.parts, *method.modules), model))
        for name in scores:
            model.get_submodule(name).requires_grad_(True)
    else:
        from luthier.models.adapters.borrowed_configs import apply_borrowed

        notes = apply_borrowed(model, method, seed=seed, adapter=adapter)
    return trainable(model, notes)


def load_adapter(model: PreTrainedModel, folder: Path, *, body: bool = False) -> None:
    """Put the adapter of a PEFT folder into `model`, in place.

    Args:
        model: a plain model.
        folder: of the adapter.
        body: of a model that scores texts, the adapter may be for the body alone.

    Raises:
        UserError: no adapter there, one that Luthier does not read, or one of another base model.
    """
    if kind_of(folder) in borrowed.KINDS:
        borrowed.load(model, folder)
    else:
        load_low_rank(model, folder, body=body)


def rows_needed(folder: Path) -> int:
    """Rows of the embeddings that the tokens of an adapter need, whose folder is given; 0 where it has none of its own.

    Raises:
        UserError: no adapter there, or one that Luthier does not read.
    """
    return 0 if kind_of(folder) in borrowed.KINDS else room_needed(read_config(folder))


def trainable(model: nn.Module, notes: tuple[str, ...] = (), rates: Mapping[str, float] | None = None) -> Trainable:
    """The parameters of `model` that require gradients, and how many they are."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise UserError("nothing is trained", where="method", hint="Choose layers, modules, embeddings or the head.")
    return Trainable(trained, count_weights(model), sum(parameter.numel() for parameter in trained.values()), notes, rates or {})


def _keep_routers(model: PreTrainedModel, method: Full | Freeze, but: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Freeze the routers of a mixture of experts, unless they are to be trained or are named; what to say of it.

    Raises:
        UserError: routers are to be trained, and the model has none.
    """
    if method.train_router:
        if not routers(model):
            raise UserError("this model has no routers", where="method.train_router", hint="Leave it out.")
        return ()
    frozen = freeze_routers(model, but)
    return ("the routers stay as they are (`method.train_router: true` trains them)",) if frozen else ()


def _freeze(model: PreTrainedModel, method: Freeze) -> None:
    """Train the chosen decoder layers, modules, embeddings and head; freeze the rest."""
    parts, modules = modern_names(method.parts, model), modern_names(method.modules, model)
    check_names(model, parts, "method.parts", parameters=True)
    check_names(model, modules, "method.modules", parameters=True)
    model.requires_grad_(False)
    for layer in _chosen_layers(model, method.layers):
        if parts:
            _train_named(layer, parts)
        else:
            layer.requires_grad_(True)
    _train_named(model, modules)
    if method.embeddings:
        model.get_input_embeddings().requires_grad_(True)
    if method.head and (head := model.get_output_embeddings()) is not None:
        head.requires_grad_(True)


def _chosen_layers(model: PreTrainedModel, wanted: int | tuple[int, ...]) -> list[nn.Module]:
    """The last n decoder layers, the first n of a negative number, or those of a list."""
    layers = decoder_layers(model)
    if isinstance(wanted, int):
        if abs(wanted) > len(layers):
            raise UserError(f"the model has {len(layers)} layers, not {abs(wanted)}", where="method.layers")
        return layers[:-wanted] if wanted < 0 else layers[len(layers) - wanted :]
    if beyond := [number for number in wanted if not 0 <= number < len(layers)]:
        raise UserError(f"the model has layers 0 to {len(layers) - 1}, no layer {beyond[0]}", where="method.layers")
    return [layers[number] for number in wanted]


def _train_named(model: nn.Module, names: tuple[str, ...]) -> None:
    """Train the modules and parameters below `model` whose dotted name ends in one of `names`."""
    for name, part in (*model.named_modules(), *model.named_parameters()):
        if name and _ends_in(name, names):
            part.requires_grad_(True)


def _ends_in(name: str, suffixes: tuple[str, ...]) -> bool:
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)
