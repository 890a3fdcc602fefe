"""bfloat16 attention of segments against its definition in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luthier.kernels import attention
from luthier.kernels.attention import segment_attention, segment_attention_reference

HEADS, GROUPS, SIZE, SCALE = 4, 2, 16, 0.25


def tensors(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as projections give them: heads interleaved in memory."""
    torch.manual_seed(0)
    made = [torch.randn(tokens, count, SIZE, dtype=torch.bfloat16).transpose(0, 1) for count in (HEADS, GROUPS, GROUPS)]
    return tuple(tensor.requires_grad_() for tensor in made)  # type: ignore[return-value]


def distance(ours: Tensor, theirs: Tensor) -> float:
    """‖ours - theirs‖ / ‖theirs‖."""
    return float((ours.detach().double() - theirs.detach().double()).norm() / theirs.detach().double().norm())


@pytest.mark.parametrize("block", [3, 192], ids=["many blocks", "one block"])
@pytest.mark.parametrize("lengths", [[1], [7, 1, 20], [40]], ids=str)
def test_is_as_near_to_float32_as_plain_bfloat16(lengths: list[int], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    query, key, value = tensors(sum(lengths))
    wide = [tensor.detach().float().requires_grad_() for tensor in (query, key, value)]
    upstream = torch.randn(sum(lengths), HEADS, SIZE, dtype=torch.bfloat16)
    exact = segment_attention_reference(*wide, lengths, SCALE)
    ours, plain = (f(query, key, value, lengths, SCALE) for f in (segment_attention, segment_attention_reference))
    assert distance(ours, exact) < 2 * distance(plain, exact) + 1e-3
    wanted = torch.autograd.grad(exact, wide, upstream.float())
    found, usual = (torch.autograd.grad(each, (query, key, value), upstream) for each in (ours, plain))
    for mine, theirs, right in zip(found, usual, wanted, strict=True):
        if right.abs().max() > 0:  # a segment of one token has no gradient to its query and key
            assert distance(mine, right) < 2 * distance(theirs, right) + 2e-3


def test_segments_do_not_see_each_other_or_the_future() -> None:
    query, key, value = tensors(12)
    before = segment_attention(query, key, value, [5, 7], SCALE)
    changed = value.detach().clone()
    changed[:, 8] += 1
    moved = (segment_attention(query, key, changed, [5, 7], SCALE) != before).flatten(1).any(1)
    assert moved.tolist() == [False] * 8 + [True] * 4


def test_leaves_the_precision_of_products_as_it_was() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    segment_attention(*tensors(6), [6], SCALE).float().sum().backward()
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_is_a_well_formed_torch_op() -> None:
    operation = torch.ops.luthier.segment_attention.default
    torch.library.opcheck(operation, (*tensors(6), [2, 4], SCALE), test_utils=("test_schema", "test_faketensor"))
