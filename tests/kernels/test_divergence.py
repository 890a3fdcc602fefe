"""The chunked divergence is its definition, its definition is the published one, and full logits are never held."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.kernels import logprob
from luthier.kernels.divergence import Side, divergence, divergence_reference

KINDS: list[Any] = ["forward", "reverse", "jsd"]


def sides(rows: int = 7, *, trained: bool = False, extra: int = 0) -> tuple[Side, Side]:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(rows, 8, generator=draw), torch.randn(50, 8, generator=draw)
    ours = Side(hidden.requires_grad_(), weight.requires_grad_(trained), torch.randn(50, generator=draw), 0.7, 20.0)
    return ours, Side(torch.randn(rows, 12, generator=draw), torch.randn(50 + extra, 12, generator=draw))


def gradients(value: torch.Tensor, side: Side) -> list[torch.Tensor]:
    leaves = [side.hidden, *([side.weight] if side.weight.requires_grad else [])]
    upstream = torch.arange(1.0, len(value) + 1)
    return list(torch.autograd.grad((value * upstream).sum(), leaves))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", [False, True])
def test_it_is_its_definition_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch, kind: Any, trained: bool) -> None:
    student, teacher = sides(trained=trained, extra=6)
    expected = divergence_reference(student, teacher, kind=kind, beta=0.3, temperature=2.0)
    slopes = gradients(expected, student)
    for size in (2**20, 1000):
        monkeypatch.setattr(logprob, "CHUNK_BYTES", size)
        found = divergence(student, teacher, kind=kind, beta=0.3, temperature=2.0)
        torch.testing.assert_close(found, expected)
        for ours, theirs in zip(gradients(found, student), slopes, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("kind", "beta"), [("forward", 0.0), ("jsd", 0.3), ("reverse", 1.0)])
def test_it_is_what_trl_computes(kind: Any, beta: float) -> None:
    trainer = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    student, teacher = sides()
    ours, theirs = ((side.hidden @ side.weight.T)[None] for side in (student, teacher))
    labels = torch.zeros(1, len(student.hidden), dtype=torch.int64)
    expected = trainer.generalized_jsd_loss(ours, theirs, labels=labels, beta=beta, temperature=1.5)
    bare = student._replace(bias=None, scale=1.0, softcap=0.0)
    found = divergence(bare, teacher, kind=kind, beta=beta, temperature=1.5)
    assert found.mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_that_is_its_teacher_is_at_no_distance() -> None:
    student, _ = sides()
    for kind in KINDS:
        assert divergence(student, student._replace(hidden=student.hidden.detach()), kind=kind).abs().max() < 1e-5


def test_no_graph_is_kept_where_none_is_wanted() -> None:
    student, teacher = sides()
    with torch.no_grad():
        assert not divergence(student, teacher).requires_grad
