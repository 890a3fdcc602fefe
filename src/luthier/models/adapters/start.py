r"""First values of an adapter that are taken from the weight it stands beside.

Plain LoRA begins with a random A and B = 0. Where training is short, or the base is in few bits, a start that knows the weight
W [out, in] learns faster. With the scaling s and rank r:

* PiSSA (Meng et al. 2024, arXiv:2404.02948): the r largest singular directions, W ≈ V Σ Uᵀ; B = V √(Σ/s), A = √(Σ/s) Uᵀ. The adapter
  *is* the principal part of the weight and the rest stays frozen. `pissa` computes the whole decomposition (seconds a layer of a 7B
  model), `pissa_niter_N` finds the r directions by N rounds of subspace iteration (Halko et al. 2011), tens of times faster.
* OLoRA (Büyükakyüz 2024, arXiv:2406.01775): W = Q R with orthonormal Q; B = the first r columns of Q, A = the first r rows of R.
* LoftQ (Li et al. 2023, arXiv:2310.08659): for a base in few bits Q(W), the best rank-r approximation of what quantising has lost,
  s B A ≈ W - Q(W), so training begins nearer to the unquantised model. One round, as in PEFT's `replace_lora_weights_loftq`: the
  quantised base stays as anybody else's. PEFT leaves out the division by s and means α = r; here any α begins at the same model.

PiSSA and OLoRA change no output at the start, for their first values are taken off the update (`LoRALinear.begin_at`). All is computed in
float32, layer by layer. Values are PEFT's, and EVA, which looks at the data, has a module of its own (`eva`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.lora import LoRALinear, adapted_layers
from luthier.models.linear import dense_weight, is_quantised
from luthier.models.stored import StoredWeights
from luthier.recipe.schema import Init

NITER = "pissa_niter_"


@torch.no_grad()
def begin_inside(model: PreTrainedModel, init: Init, *, seed: int) -> None:
    """Give every adapter of `model` the first values of PiSSA or OLoRA, in place.

    Args:
        model: holds fresh adapters.
        init: `pissa`, `pissa_niter_N` or `olora`.
        seed: of the random start of `pissa_niter_N`.

    Raises:
        UserError: a rank is larger than its layer.
    """
    for number, (name, layer) in enumerate(adapted_layers(model).items()):
        weight = dense_weight(layer.base_layer, torch.float32)
        _check_rank(name, layer, weight)
        if init == "olora":
            a, b = orthonormal_part(weight, layer.rank)
        else:
            rounds = int(init.removeprefix(NITER)) if init.startswith(NITER) else None
            a, b = principal_part(weight, layer.rank, layer.scaling, rounds=rounds, seed=seed + number)
        layer.begin_at(a, b)


@torch.no_grad()
def begin_against_quantisation(model: PreTrainedModel) -> None:
    """Give every adapter beside a quantised layer the first values of LoftQ, in place.

    Args:
        model: holds fresh adapters over a base that was quantised when it was loaded; its folder has the weights before that.

    Raises:
        UserError: the base is not quantised, a rank is larger than its layer, or the weight of a layer is not in the files.
    """
    layers = {name: layer for name, layer in adapted_layers(model).items() if is_quantised(layer.base_layer)}
    if not layers:
        raise UserError(
            "`loftq` starts against the error of a quantised base", where="method.init", hint="Set model.quantization."
        )
    stored, prefix = StoredWeights(Path(model.name_or_path)), f"{model.base_model_prefix}."
    for name, layer in layers.items():
        keys = (f"{name}.weight", f"{name}.weight".removeprefix(prefix), f"{prefix}{name}.weight")
        key = next((key for key in keys if key in stored), None)
        if key is None:
            raise UserError(
                f"`{name}` is not in the base's files under that name", where="method.init", hint="Use another start."
            )
        lost = _difference(stored.tensor(key), dense_weight(layer.base_layer, torch.float32))
        _check_rank(name, layer, lost)
        a, b = principal_part(lost, layer.rank, layer.scaling)
        layer.lora_A.copy_(a)
        layer.lora_B.copy_(b)


def principal_part(
    weight: Tensor, rank: int, scaling: float, *, rounds: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r], float32, with s B A the best approximation of `weight` [out, in] of this rank.

    Args:
        weight: float32.
        rank: r.
        scaling: s.
        rounds: rounds of subspace iteration; None is the whole decomposition.
        seed: of the directions that the iteration begins with.
    """
    if rounds is None:
        left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
            torch.manual_seed(seed)
            left, sizes, right = torch.svd_lowrank(weight, rank, niter=rounds)
        right = right.T
    root = (sizes[:rank] / scaling).sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def orthonormal_part(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r], float32, of W = Q R: the first rows of R and columns of Q, whatever the scaling is."""
    columns, rows = torch.linalg.qr(weight)
    return rows[:rank], columns[:, :rank]


def _difference(stored: Tensor, rounded: Tensor) -> Tensor:
    """What rounding has lost of a weight, [out, in] like `rounded`; `Conv1D` stores it the other way round, so the nearer way is meant."""
    ways = (way.to(rounded) - rounded for way in (stored, stored.T) if way.shape == rounded.shape)
    return min(ways, key=lambda lost: float(torch.linalg.matrix_norm(lost)))


def _check_rank(name: str, layer: LoRALinear, weight: Tensor) -> None:
    if layer.rank > min(weight.shape):
        raise UserError(
            f"rank {layer.rank} is more than the {min(weight.shape)} directions of `{name}`",
            where="method.rank",
            hint="Lower it, or leave the layer out of `method.target`.",
        )
