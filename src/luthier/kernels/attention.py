r"""Causal attention of ragged segments on a CPU: torch's kernel forward, matrix products backward.

For each segment of a row and each head, with S = q kᵀ / √D masked to the past:

    o = P v,  P = softmax(S),  ℓ = log Σ exp S                     kept: q, k, v, o and ℓ [H, T]
    dv = Pᵀ do,   dS = P ∘ (do vᵀ - rowsum(P ∘ do vᵀ)),   dq = dS k / √D,   dk = dSᵀ q / √D

torch's CPU kernel is good at the forward pass, but its backward pass hardly uses the matrix units that a processor has for bfloat16: a
quarter of a training step of a small model was spent there (`benchmarks/LOG.md`). Here P is computed again from ℓ, so nothing
of size L² is kept, and every product is a batched matrix product over heads. Queries are worked through in blocks of `BLOCK` rows, and a
block multiplies only with the keys up to its last row: for long segments that leaves out nearly half of the square. The heads that share a
key-value head (grouped queries) are rows of one product, so keys are never copied for them. S and P are float32 until P is
rounded to the inputs' type. Method: FlashAttention-2 (Dao 2023), without its tiles.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

BLOCK = 192
"""Query rows of one product."""


def segment_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Attention of each segment with itself.

    Args:
        query: bfloat16 [H, T, D] on a CPU, any strides.
        key: [G, T, D], H a multiple of G.
        value: [G, T, D].
        lengths: of the segments, in order; they sum to T.
        scale: of the scores, 1/√D as a rule.

    Returns:
        [T, H, D], contiguous, in the dtype of `query`.
    """
    return _forward(query, key, value, list(lengths), scale)[0]


def segment_attention_reference(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """The plain definition of `segment_attention`."""
    groups, pieces = query.shape[0] // key.shape[0], []
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    for q, k, v in zip(*(tensor.split(list(lengths), 1) for tensor in (query, key, value)), strict=True):
        future = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
        scores = (q.float() @ k.float().mT * scale).masked_fill(future, -torch.inf)
        pieces.append(scores.softmax(-1).to(v.dtype) @ v)
    return torch.cat(pieces, 1).transpose(0, 1).contiguous()


def _segments(lengths: Sequence[int]) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """(first token, end, blocks of query rows) of every segment; blocks are of nearly equal size, the last comes first."""
    start = 0
    for length in lengths:
        size = -(-length // max(1, -(-length // BLOCK)))
        bounds = [(first, min(first + size, start + length)) for first in range(start, start + length, max(size, 1))]
        yield start, start + length, bounds[::-1]
        start += length


@contextmanager
def _exact_products() -> Iterator[None]:
    """float32 products of numbers that are bfloat16 anyway may run on the bfloat16 units: nothing is lost, sums are float32."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


@functools.lru_cache(maxsize=64)
def _future(rows: int) -> Tensor:
    """float32 [rows, rows] of 0 and, for keys that come after the query, -∞."""
    return torch.full((rows, rows), -torch.inf).triu_(1)


def _queries(tensor: Tensor, groups: int, first: int, end: int) -> Tensor:
    """Rows first…end of [G·g, T, D] as [G, g·rows, D]: the heads of a group below each other."""
    return tensor[:, first:end].reshape(groups, -1, tensor.shape[-1])


def _scores(query: Tensor, key: Tensor, rows: int, scale: float) -> Tensor:
    """float32 [G, g·rows, keys], the future at -∞."""
    scores = torch.bmm(query.float(), key.float().mT).mul_(scale)
    scores.view(scores.shape[0], -1, rows, scores.shape[-1])[..., -rows:] += _future(rows)
    return scores


@torch.library.custom_op("luthier::segment_attention", mutates_args=())
def _forward(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float) -> tuple[Tensor, Tensor]:
    """(o [T, H, D], ℓ float32 [H, T])."""
    heads, tokens, size = query.shape
    out = query.new_empty(tokens, heads, size)
    spread = torch.empty(heads, tokens, dtype=torch.float32)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        q, k, v = (tensor[None, :, rows] for tensor in (query, key, value))
        answer, column = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True, scale=scale)
        out[rows], spread[:, rows] = answer[0].transpose(0, 1), column[0]
        start += length
    return out, spread


@_forward.register_fake
def _(query, key, value, lengths, scale):  # type: ignore[no-untyped-def]
    heads, tokens, size = query.shape
    return query.new_empty(tokens, heads, size), query.new_empty(heads, tokens, dtype=torch.float32)


@torch.library.custom_op("luthier::segment_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, spread: Tensor, lengths: list[int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, laid out like [T, heads, D], where projections want them."""
    heads, tokens, size = query.shape
    groups = key.shape[0]
    d_query, d_key, d_value = (query.new_empty(tokens, each.shape[0], size).transpose(0, 1) for each in (query, key, value))
    upstream = gradient.transpose(0, 1)
    with _exact_products():
        for start, stop, blocks in _segments(lengths):
            totals: list[Tensor] = []
            for first, end in blocks:
                wanted, incoming, column = (
                    _queries(tensor, groups, first, end) for tensor in (query, upstream, spread[..., None])
                )
                weights = _scores(wanted, key[:, start:end], end - first, scale).sub_(column).exp_().to(query.dtype)
                slope = torch.bmm(incoming, value[:, start:end].mT)
                slope = torch._softmax_backward_data(slope, weights, -1, slope.dtype)
                d_query[:, first:end] = torch.bmm(slope, key[:, start:end]).mul_(scale).view(heads, end - first, size)
                products = [torch.bmm(slope.mT, wanted).mul_(scale), torch.bmm(weights.mT, incoming)]
                for total, product in zip(totals, products, strict=False):
                    total[:, : end - start] += product
                totals = totals or products
            d_key[:, start:stop], d_value[:, start:stop] = totals
    return d_query, d_key, d_value


@_backward.register_fake
def _(gradient, query, key, value, out, spread, lengths, scale):  # type: ignore[no-untyped-def]
    return tuple(each.new_empty(each.shape[1], each.shape[0], each.shape[2]).transpose(0, 1) for each in (query, key, value))


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, key, value, ctx.lengths, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, *output)


def _differentiate(ctx, gradient, _unused):  # type: ignore[no-untyped-def]
    return *_backward(gradient, *ctx.saved_tensors, ctx.lengths, ctx.scale), None, None


_forward.register_autograd(_differentiate, setup_context=_remember)
