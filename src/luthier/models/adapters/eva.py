r"""EVA: adapters that begin along the directions in which a layer's inputs really vary (Paischer et al. 2024, arXiv:2410.07170).

A few batches of the training data are sent through the base model, and of each layer's inputs X [T, in], at the supervised tokens, the
largest right-singular vectors are found, batch by batch until they no longer turn (incremental PCA). They become the rows of A; B is zero.
Ranks are dealt out anew: a layer whose inputs need more directions to be explained gets up to ρ · r of them, another fewer, at the
same sum; a layer that is left with none gets no adapter. Alpha follows the rank, so that the scaling α / r is everywhere the same.

The computation is PEFT's own (`peft.tuners.lora.eva`). What comes out is an ordinary adapter with a rank for each layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.targets import target_layers
from luthier.models.head import decoder
from luthier.models.linear import QuantisedLinear, shape_of

if TYPE_CHECKING:
    from luthier.data.batch import Drawn

BATCH_TOKENS = 4096
"""Tokens of a batch for the decomposition, at least; more where the ranks ask for more."""
BATCHES = 32
"""Most batches that are looked at; they are gone through again until the directions stand still."""
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Directions:
    """What EVA found.

    Attributes:
        config: the adapter's settings with the layers that got a rank, and their ranks and alphas.
        values: A [r, in] of each of those layers, float32.
    """

    config: AdapterConfig
    values: dict[str, Tensor]


def find_directions(model: PreTrainedModel, config: AdapterConfig, drawn: Iterable[Drawn], *, rho: float) -> Directions:
    """Look at the inputs of the layers that `config` names, on the first rows of the training data.

    Args:
        model: the base, without adapter.
        config: the adapter as the recipe has it.
        drawn: what the first steps learn from; taken as far as needed.
        rho: most a layer's rank may grow.

    Raises:
        UserError: PEFT is not installed, a layer is too small for the ranks, or there are too few supervised tokens.
    """
    layers = target_layers(model, config)
    if any(layer is model.get_output_embeddings() for layer in layers.values()):
        raise UserError("`eva` cannot start an adapter on the output head", where="method.target", hint="Leave the head out.")
    most = round(max(config.rank_and_alpha(name)[0] for name in layers) * rho)
    for name, layer in layers.items():
        if 2 * most > shape_of(layer)[1]:
            raise UserError(
                f"`{name}` has {shape_of(layer)[1]} inputs, and {most} directions of them are asked for",
                where="method.eva_rho",
                hint="Lower `rank` or `eva_rho`: their product may be half a layer's inputs at most.",
            )
    batches = list(batches_of(drawn, supervised=2 * most))
    if not batches:
        raise UserError(
            f"`eva` needs {2 * most} supervised tokens at once", where="method.init", hint="Lower `rank`, or train on more data."
        )
    found = _peft_directions(model, config, list(layers), batches, rho)
    return _dealt_out(config, {name: found[name] for name in layers})


def _peft_directions(
    model: PreTrainedModel, config: AdapterConfig, names: Sequence[str], batches: Sequence[dict[str, Tensor]], rho: float
) -> dict[str, Tensor]:
    """Rows of A by layer: as many as its new rank."""
    try:
        from peft import EvaConfig, LoraConfig
        from peft.tuners.lora.eva import get_eva_state_dict
    except ImportError:
        raise UserError(
            "`init: eva` needs PEFT", where="method.init", hint="Install it with `pip install 'luthier[peft]'`."
        ) from None

    def forward(model: Any, inputs: dict[str, Tensor]) -> None:
        decoder(model)(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of LoraConfig, that its start needs data: it gets them
        settings = LoraConfig(
            r=config.rank,
            target_modules=list(names),
            rank_pattern=dict(config.rank_pattern),
            init_lora_weights="eva",
            eva_config=EvaConfig(rho=rho),
        )
    with _as_linear(model, names):
        return get_eva_state_dict(
            model, batches, settings, forward_fn=forward, gather_distributed_inputs=False, show_progress_bar=False
        )


class _Linear(nn.Linear):
    """A layer in few bits, in the form in which PEFT looks for layers."""

    def __init__(self, layer: QuantisedLinear) -> None:
        nn.Module.__init__(self)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """What the layer itself computes."""
        return self.layer(x)


@contextmanager
def _as_linear(model: PreTrainedModel, names: Sequence[str]) -> Iterator[None]:
    """Inside, PEFT finds all of these layers, however they are stored."""
    packed = {name: layer for name in names if isinstance(layer := model.get_submodule(name), QuantisedLinear)}
    for name, layer in packed.items():
        model.set_submodule(name, _Linear(layer))
    try:
        yield
    finally:
        for name, layer in packed.items():
            model.set_submodule(name, layer)


def _dealt_out(config: AdapterConfig, found: dict[str, Tensor]) -> Directions:
    """The adapter with the ranks that were found; alpha grows with the rank of its layer."""
    values = {name: rows.float() for name, rows in found.items() if len(rows)}
    alphas = {}
    for name, rows in values.items():
        rank, alpha = config.rank_and_alpha(name)
        alphas[name] = alpha * len(rows) / rank
    ranks = {name: len(rows) for name, rows in values.items()}
    dealt = replace(
        config,
        target=tuple(values),
        layers=(),
        layers_pattern=(),
        exclude=(),
        rank_pattern={name: rank for name, rank in ranks.items() if rank != config.rank},
        alpha_pattern={name: alpha for name, alpha in alphas.items() if alpha != config.alpha},
    )
    return Directions(dealt, values)


def batches_of(drawn: Iterable[Drawn], *, supervised: int) -> Iterator[dict[str, Tensor]]:
    """Right-padded batches of at least `BATCH_TOKENS` tokens and `supervised` supervised ones; a rest that is smaller is left out."""
    rows: list[tuple[Any, Any]] = []
    made = 0
    for step in drawn:
        for segment in step.segments:
            tokens, weight = step.store.segment(int(segment))
            rows.append((tokens, np.asarray(weight) > 0))
            learnt = sum(int(mask.sum()) for _, mask in rows)
            if learnt >= supervised and sum(len(tokens) for tokens, _ in rows) >= BATCH_TOKENS:
                yield _padded(rows)
                rows, made = [], made + 1
                if made == BATCHES:
                    return
    if rows and sum(int(mask.sum()) for _, mask in rows) >= supervised:
        yield _padded(rows)


def _padded(rows: Sequence[tuple[Any, Any]]) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels`, int64 [rows, longest], of (tokens, mask of the supervised ones)."""
    longest = max(len(tokens) for tokens, _ in rows)
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), IGNORED)
    mask = torch.zeros_like(ids)
    for row, (tokens, learnt) in enumerate(rows):
        values = torch.from_numpy(np.asarray(tokens, np.int64))
        ids[row, : len(tokens)], mask[row, : len(tokens)] = values, 1
        labels[row, : len(tokens)] = torch.where(torch.from_numpy(learnt), values, IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
