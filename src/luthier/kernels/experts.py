r"""A layer of experts without a loop over them: one grouped product for all, low-rank adapters included.

A router sends each of T tokens to k of E experts. The S = T · k pairs of token and expert are sorted by expert; expert e then computes on
a contiguous slice of rows, and all slices are one grouped matrix product with weights [E, out, in] (`torch.nn.functional.grouped_mm`).
A low-rank adapter of rank r is two more of them:

    y = x W_eᵀ + s · (drop(x) A_eᵀ) B_eᵀ          A [E, r, in], B [E, out, r]

so no tensor of the size of W is ever made for it, and there is an input to drop numbers of. (PEFT folds W_e + s B_e A_e anew for
all E experts in each pass: E · out · in numbers more to compute and to keep, however few tokens an expert gets.) Rows go to their
experts and come back by permutations, whose backward passes are permutations too: nothing is scattered, so that sums do not
depend on the order in which threads arrive. `experts_reference` is the definition, with a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]
ALIGNMENT = 16
"""Bytes: what torch's grouped product wants rows to begin at multiples of; ranks are filled up with zeros."""


class Factors(NamedTuple):
    """A low-rank difference of every expert's weight.

    Attributes:
        a: [E, r, in].
        b: [E, out, r].
        scale: multiplier s.
        dropout: probability of zeroing an input of the adapter now; 0 outside training.
    """

    a: Tensor
    b: Tensor
    scale: float
    dropout: float = 0.0


class ExpertLinear(NamedTuple):
    """One linear map for each expert.

    Attributes:
        weight: [E, out, in].
        bias: [E, out] or None.
        factors: an adapter beside the weight, or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    factors: Factors | None = None


def experts(
    hidden: Tensor, index: Tensor, share: Tensor, first: ExpertLinear, activation: Activation, second: ExpertLinear
) -> Tensor:
    """What the chosen experts make of each token, weighted and added.

    Args:
        hidden: [T, H].
        index: int64 [T, k], the experts of each token.
        share: [T, k], their weights.
        first: H → I' (2 I where the activation gates).
        activation: [S, I'] → [S, I].
        second: I → H.

    Returns:
        [T, H] in the dtype of `hidden`.
    """
    tokens, chosen = index.shape
    of_pair, order = torch.sort(index.reshape(-1), stable=True)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    count = first.weight.shape[0]
    ends = torch.searchsorted(of_pair, torch.arange(1, count + 1, device=index.device)).to(torch.int32)
    rows: Tensor = _Spread.apply(hidden, order, back, chosen)
    inner = activation(_grouped(rows, first, ends, of_pair))
    outer: Tensor = _Permuted.apply(_grouped(inner, second, ends, of_pair), back, order)
    return (outer.view(tokens, chosen, -1) * share[..., None]).sum(1).to(hidden.dtype)


def experts_reference(
    hidden: Tensor, index: Tensor, share: Tensor, first: ExpertLinear, activation: Activation, second: ExpertLinear
) -> Tensor:
    """The plain definition of `experts`: one expert after the other, adapters folded into the weights, without dropout."""
    result = torch.zeros_like(hidden)
    for expert in range(first.weight.shape[0]):
        rows, place = (index == expert).nonzero(as_tuple=True)
        inner = activation(_one(hidden[rows], first, expert))
        result = result.index_add(0, rows, (_one(inner, second, expert) * share[rows, place, None]).to(result.dtype))
    return result


def _grouped(x: Tensor, linear: ExpertLinear, ends: Tensor, of_pair: Tensor) -> Tensor:
    """Each expert's map on its slice of rows [S, in]; `ends` says where the slices end."""
    y = functional.grouped_mm(x.to(linear.weight.dtype), linear.weight.transpose(-2, -1), offs=ends)
    if linear.factors is not None:
        a, b, scale, dropout = linear.factors
        missing = -a.shape[1] % (ALIGNMENT // a.element_size())
        a, b = functional.pad(a, (0, 0, 0, missing)), functional.pad(b, (0, missing)).contiguous()
        dropped = functional.dropout(x, dropout) if dropout else x
        low = functional.grouped_mm(dropped.to(a.dtype), a.transpose(-2, -1), offs=ends) * scale
        y.add_(functional.grouped_mm(low, b.transpose(-2, -1), offs=ends).to(y.dtype))
    return y if linear.bias is None else y + linear.bias[of_pair]


def _one(x: Tensor, linear: ExpertLinear, expert: int) -> Tensor:
    weight = linear.weight[expert]
    if linear.factors is not None:
        weight = weight + linear.factors.scale * (linear.factors.b[expert] @ linear.factors.a[expert]).to(weight.dtype)
    return functional.linear(x, weight, None if linear.bias is None else linear.bias[expert])


class _Spread(Function):
    """Rows [T, H] of tokens to rows [S, H] of pairs, sorted by expert."""

    @staticmethod
    def forward(ctx, hidden, order, back, chosen):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(back)
        ctx.chosen = chosen
        return hidden.index_select(0, order // chosen)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (back,) = ctx.saved_tensors
        return gradient.index_select(0, back).view(-1, ctx.chosen, gradient.shape[-1]).sum(1), None, None, None


class _Permuted(Function):
    """Rows in another order; `inverse` leads back."""

    @staticmethod
    def forward(ctx, rows, order, inverse):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None
