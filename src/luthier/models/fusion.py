"""Put Luthier's kernels in the place of a model's small pieces, where they compute the same.

A norm or a rotation written as a dozen plain operations is a dozen passes over memory, and as many again in the backward pass; on a CPU
that is a tenth of a training step. `fuse` gives such modules a subclass of their own class with another forward pass, so that names,
parameters, copies and files stay what they are. A name only says where to look: each candidate is first run beside the module's own
code on random numbers, and left alone when the two differ by more than rounding.
"""

from __future__ import annotations

import functools
import sys
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from luthier.kernels.norm import rms_norm
from luthier.kernels.rotary import rotate

ROTATION = "apply_rotary_pos_emb"
"""What the modelling files of transformers call the rotation of queries and keys."""
FUSED = "luthier_fused"
"""Attribute of the classes made here."""
ROWS = 5
"""Rows of random numbers on which a candidate is tried."""


def fuse(model: nn.Module) -> int:
    """Replace what can be replaced, in place, and return how many modules that were. For models on a CPU."""
    found = 0
    for module in model.modules():
        if FUSED in vars(type(module)):
            continue
        fused = _norm(module) or _rotating(type(module))  # type: ignore[arg-type]  # mypy takes a module class for unhashable
        if fused is not None:
            module.__class__ = fused
            found += 1
    return found


def _norm(module: nn.Module) -> type[nn.Module] | None:
    """A subclass with the fused norm, if this is a root-mean-square norm."""
    weight, epsilon = getattr(module, "weight", None), _epsilon(module)
    if epsilon is None or not isinstance(weight, Tensor) or weight.ndim != 1 or "RMSNorm" not in type(module).__name__:
        return None
    with torch.no_grad():
        x = torch.randn(ROWS, len(weight), dtype=weight.dtype, generator=torch.Generator().manual_seed(0))
        expected = module(x)
        for centred in (False, True):
            if _same(rms_norm(x, weight, epsilon, centred=centred), expected):
                return _with_norm(type(module), centred)  # type: ignore[arg-type]
    return None


def _epsilon(module: nn.Module) -> float | None:
    return next(
        (getattr(module, name) for name in ("variance_epsilon", "eps") if isinstance(getattr(module, name, None), float)), None
    )


@functools.cache
def _with_norm(kind: type[nn.Module], centred: bool) -> type[nn.Module]:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight, _epsilon(self) or 0.0, centred=centred)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, FUSED: True})


@functools.cache
def _rotating(kind: type[nn.Module]) -> type[nn.Module] | None:
    """A subclass whose forward pass calls the fused rotation, if the class calls one that computes the same."""
    forward, space = kind.forward, vars(sys.modules[kind.__module__])
    own = space.get(ROTATION)
    if own is None or not isinstance(forward, FunctionType) or ROTATION not in forward.__code__.co_names or not _rotates(own):
        return None
    copy = FunctionType(
        forward.__code__, {**space, ROTATION: rotate}, forward.__name__, forward.__defaults__, forward.__closure__
    )
    copy.__kwdefaults__ = forward.__kwdefaults__
    return type(kind.__name__, (kind,), {"forward": copy, "__module__": kind.__module__, FUSED: True})


def _rotates(own: Any) -> bool:
    """Whether a model's own rotation is `rotate`."""
    source = torch.Generator().manual_seed(0)
    query, key, cos, sin = (
        torch.randn(shape, generator=source) for shape in ((1, 4, ROWS, 8), (1, 2, ROWS, 8), *[(1, ROWS, 8)] * 2)
    )
    try:
        expected = own(query, key, cos, sin)
    except (TypeError, RuntimeError):  # other arguments, or other shapes
        return False
    return all(_same(mine, theirs) for mine, theirs in zip(rotate(query, key, cos, sin), expected, strict=True))


def _same(ours: Tensor, theirs: Any) -> bool:
    """Equal but for rounding."""
    tolerance = 4 * torch.finfo(ours.dtype).eps
    return (
        isinstance(theirs, Tensor) and ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    )
