r"""Many low-rank adapters on one base, each row of a batch answered by its own.

    row 0  by `polite`      y_0 = W x_0 + b + s_p B_p A_p x_0
    row 1  by `legal`       y_1 = W x_1 + b + s_l B_l A_l x_1
    row 2  by the base      y_2 = W x_2 + b

The product with the frozen weight, which is nearly all of the work, is made once for all rows. Then the factors of the rows
stand as A [B, r, in] and B [B, r, out], ranks filled up with zeros, and two batched products add every row's own difference:
one pass, however many adapters (the idea of Punica, Chen et al. 2023, arXiv:2310.18547, in plain torch). A row of the base has
zeros there, and stays bit for bit what it is.

Adapters stand beside the layers as forward hooks. So modules keep their names and weights, any base will do that computes a
linear map (dense, transposed, in few bits), and an adapter can be loaded or forgotten between two steps while others answer;
one that is forgotten in the middle of an answer still ends it. DoRA's length per output is a vector ρ = m / ‖W + s B A‖ that is
known once weights stand still: y = W x + b + (ρ - 1) · W x + ρ s B A x.

An adapter that trains modules or rows of embeddings whole, or experts, changes more than a difference beside a layer: it is
answered by a model of its own, or merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from luthier.errors import UserError, did_you_mean
from luthier.models.adapters.borrowed import config_of
from luthier.models.adapters.config import LORA, AdapterConfig
from luthier.models.adapters.format import PREFIX, WEIGHTS_FILE, adapter_key, kind_of, load_tensors, read_config, repeats_base
from luthier.models.adapters.insert import adapter_config
from luthier.models.adapters.lora import row_norms
from luthier.models.adapters.targets import target_experts, target_layers
from luthier.models.legacy.names import modern_config, modern_tensors
from luthier.models.linear import dense_weight, device_of, is_quantised, shape_of


@dataclass(frozen=True, slots=True)
class Factors:
    """The difference of one layer, ready to be added.

    Args:
        a: [r, in].
        b: [r, out], turned round, times the scaling.
        stretch: ρ - 1 of DoRA, [out].
    """

    a: Tensor
    b: Tensor
    stretch: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One adapter in memory.

    Args:
        name: how requests call it.
        layers: dotted name of a layer → its difference.
        number: of no other adapter, not even of a later one with its name.
    """

    name: str
    layers: Mapping[str, Factors]
    number: int


class Mix:
    """The adapters of the rows of a batch, and their factors side by side; made anew when rows join, cut when they leave.

    Args:
        rows: of each row its adapter, None where it has none.
    """

    def __init__(self, rows: Sequence[Adapter | None]) -> None:
        self.rows = tuple(rows)
        self.bare = not any(self.rows)
        self._stacked: dict[str, Factors | None] = {}

    def factors(self, layer: str) -> Factors | None:
        """Of one layer, with a first dimension of rows [B, …], or without one where all rows have the same; None where no row has any."""
        if layer not in self._stacked:
            self._stacked[layer] = self._stack([row.layers.get(layer) if row else None for row in self.rows])
        return self._stacked[layer]

    def keep(self, rows: Sequence[int]) -> Mix:
        """Of these rows, in this order."""
        kept = Mix([self.rows[row] for row in rows])
        if not kept.bare:
            kept._stacked = {name: factors and _picked(factors, rows) for name, factors in self._stacked.items()}
        return kept

    @staticmethod
    def _stack(rows: Sequence[Factors | None]) -> Factors | None:
        some = [row for row in rows if row is not None]
        if not some:
            return None
        first = some[0]
        if all(row is first for row in rows):
            return first
        none = Factors(first.a[:0], first.b[:0])
        a = pad_sequence([(row or none).a for row in rows], batch_first=True)
        b = pad_sequence([(row or none).b for row in rows], batch_first=True)
        if all(row.stretch is None for row in some):
            return Factors(a, b)
        flat = torch.zeros_like(first.b[0])
        stretches = [flat if row is None or row.stretch is None else row.stretch for row in rows]
        return Factors(a, b, torch.stack(stretches)[:, None])


def _picked(factors: Factors, rows: Sequence[int]) -> Factors:
    """Stacked factors of some rows; those that all rows share as they are."""
    if factors.a.ndim == 2:
        return factors
    index = torch.tensor(rows, device=factors.a.device)
    return Factors(factors.a[index], factors.b[index], None if factors.stretch is None else factors.stretch[index])


class Adapters:
    """The adapters of one model. Not thread-safe: load and unload between two steps.

    Args:
        model: a plain model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._loaded: dict[str, Adapter] = {}
        self._numbers = count()
        self._hooked: set[str] = set()
        self._mix: Mix | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters that are loaded, in the order of their loading."""
        return tuple(self._loaded)

    def load(self, name: str, folder: Path) -> None:
        """Read a LoRA adapter in PEFT's format and offer it under a name.

        Raises:
            UserError: the name is taken; no adapter there, or one of another base; it is of a kind that cannot share a batch; or the
                model carries an adapter itself.
        """
        if name in self._loaded:
            raise UserError(f"an adapter `{name}` is loaded already", where="adapter", hint="Unload it first.")
        if adapter_config(self._model) is not None or config_of(self._model) is not None:
            raise UserError("the model carries an adapter already", where="adapter", hint="Load the plain base model.")
        layers = _read(self._model, folder)
        for layer in layers:
            if layer not in self._hooked:
                self._model.get_submodule(layer).register_forward_hook(partial(self._add, layer))
                self._hooked.add(layer)
        self._loaded[name] = Adapter(name, layers, next(self._numbers))

    def unload(self, name: str) -> None:
        """Forget an adapter. Answers that it is writing are ended by it.

        Raises:
            UserError: there is none of that name.
        """
        del self._loaded[self.find(name).name]

    def find(self, name: str) -> Adapter:
        """The adapter of a name.

        Raises:
            UserError: there is none.
        """
        if name not in self._loaded:
            raise UserError(f"no adapter `{name}` is loaded", where="adapter", hint=did_you_mean(name, self._loaded))
        return self._loaded[name]

    @contextmanager
    def answering(self, mix: Mix) -> Iterator[None]:
        """Forward passes inside are of rows with these adapters."""
        self._mix = None if mix.bare else mix
        try:
            yield
        finally:
            self._mix = None

    def _add(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """What a layer gives, with each row's difference on top."""
        factors = self._mix.factors(name) if self._mix else None
        if factors is None:
            return None
        return _added(inputs[0], output, factors, layer.bias)  # type: ignore[arg-type]


def _added(x: Tensor, y: Tensor, factors: Factors, bias: Tensor | None) -> Tensor:
    """The outputs `y` [..., out] of a layer for `x` [..., in] with the differences; the first dimension is rows, or rows times tokens."""
    a, b, stretch = factors.a, factors.b, factors.stretch
    x = x.to(a.dtype)
    if a.ndim == 2:
        inner, rows = x.reshape(-1, x.shape[-1]) @ a.T, y.reshape(-1, y.shape[-1])
        added = rows.addmm(inner.to(y.dtype), b.to(y.dtype))
    else:
        inner, rows = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a.mT), y.reshape(len(a), -1, y.shape[-1])
        added = rows.baddbmm(inner.to(y.dtype), b.to(y.dtype))
    if stretch is not None:
        added = added + stretch.to(y.dtype) * (rows if bias is None else rows - bias)
    return added.view_as(y)


def _read(model: PreTrainedModel, folder: Path) -> dict[str, Factors]:
    """The differences of an adapter folder.

    Raises:
        UserError: see `Adapters.load`.
    """
    if kind_of(folder) != LORA:
        raise _alone(f"an adapter of kind {kind_of(folder)}", folder)
    config = modern_config(read_config(folder), model)
    if config.modules_to_save or config.tokens:
        raise _alone("an adapter that trains modules or tokens whole", folder)
    if target_experts(model, config):
        raise _alone("an adapter of experts", folder)
    layers = target_layers(model, config)
    tensors = _tensors(model, folder, config, layers)
    return {name: _factors(layer, name, config, tensors, model.dtype) for name, layer in layers.items()}


def _tensors(model: PreTrainedModel, folder: Path, config: AdapterConfig, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of an adapter by their keys: all that its layers need, in the right shapes, and no others."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in layers.items():
        (outputs, inputs), rank = shape_of(layer), config.rank_and_alpha(name)[0]
        shapes[adapter_key(f"{name}.lora_A")], shapes[adapter_key(f"{name}.lora_B")] = (rank, inputs), (outputs, rank)
        if config.dora:
            shapes[adapter_key(f"{name}.lora_magnitude_vector")] = (outputs,)
    tensors = modern_tensors(load_tensors(folder / WEIGHTS_FILE), model, PREFIX, set(shapes))
    base = dict(model.named_parameters())
    for key, shape in shapes.items():
        if key not in tensors or tuple(tensors[key].shape) != shape:
            raise UserError(
                f"`{key}` is missing or has another shape than {list(shape)}",
                where=str(folder),
                hint="Is it the right base model?",
            )
    if extra := [key for key in tensors if key not in shapes and not repeats_base(tensors[key], base, key)]:
        raise UserError(f"`{extra[0]}` belongs to nothing in this model", where=str(folder), hint="Is it the right base model?")
    return tensors


def _factors(layer: nn.Module, name: str, config: AdapterConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Factors:
    """The difference of one layer, in the type and on the device of its computation."""
    rank, alpha = config.rank_and_alpha(name)
    scaling = alpha / (rank**0.5 if config.rslora else rank)
    device = device_of(layer)
    dtype = dtype if is_quantised(layer) else layer.weight.dtype  # type: ignore[union-attr, assignment]
    a = tensors[adapter_key(f"{name}.lora_A")].float().to(device)
    b = tensors[adapter_key(f"{name}.lora_B")].float().to(device) * scaling
    if not config.dora:
        return Factors(a.to(dtype), b.T.to(dtype).contiguous())
    length = tensors[adapter_key(f"{name}.lora_magnitude_vector")].float().to(device)
    ratio = length / row_norms(dense_weight(layer).float() + b @ a)
    return Factors(a.to(dtype), (ratio[:, None] * b).T.to(dtype).contiguous(), (ratio - 1).to(dtype))


class CannotShare(UserError):
    """The adapter changes more than a difference beside a layer."""


def _alone(what: str, folder: Path) -> CannotShare:
    return CannotShare(
        f"{what} cannot share a batch with others", where=str(folder), hint="Load it alone, or merge it into its base first."
    )
