"""The chunked head says what full logits say, forward and backward, for any chunk size."""

from __future__ import annotations

import pytest
import torch

from luthier.kernels import logprob
from luthier.kernels.logprob import token_logprobs, token_logprobs_reference

ROWS, HIDDEN, VOCABULARY = 70, 16, 50


@pytest.fixture(params=[1, 16, 1000])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob, "CHUNK_BYTES", VOCABULARY * 4 * request.param)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_equals_full_logits(chunk: None, biased: bool, softcap: float, smoothing: float, frozen: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, requires_grad=not frozen)
    bias = torch.randn(VOCABULARY, requires_grad=not frozen) if biased else None
    targets, upstream = torch.randint(0, VOCABULARY, (ROWS,)), torch.randn(ROWS)
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None and leaf.requires_grad]
    ours = token_logprobs(hidden, weight, targets, bias=bias, scale=0.7, softcap=softcap, smoothing=smoothing, entropy=True)
    plain = token_logprobs_reference(hidden, weight, targets, bias=bias, scale=0.7, softcap=softcap, smoothing=smoothing)
    torch.testing.assert_close(ours.logprob, plain.logprob, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.entropy, plain.entropy, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.top1, plain.top1)
    for mine, theirs in zip(
        torch.autograd.grad((ours.logprob * upstream).sum(), leaves),
        torch.autograd.grad((plain.logprob * upstream).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_is_a_well_formed_torch_op() -> None:
    hidden = torch.randn(6, 4, requires_grad=True)
    weight = torch.randn(5, 4)
    arguments = (hidden, weight, None, torch.randint(0, 5, (6,)), 1.0, 0.0, 0.1, True, "direction")
    torch.library.opcheck(torch.ops.luthier.token_logprobs.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.full((3, 4), 100.0, requires_grad=True)
    weight = torch.cat([torch.ones(1, 4), -torch.ones(4, 4)]) * 50
    said = token_logprobs(hidden, weight, torch.tensor([0, 1, 2]))
    assert torch.isfinite(said.logprob).all()
    assert said.logprob[0] == 0.0
    assert said.logprob[1].item() == pytest.approx(-40000.0)


def test_full_logits_are_never_held() -> None:
    """The largest tensor made inside is one chunk, not R · V."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else [out]:
                if isinstance(value, torch.Tensor):
                    Largest.seen = max(Largest.seen, value.numel())
            return out

    rows, vocabulary, hidden = 512, 40_000, 8
    with Largest():
        token_logprobs(torch.randn(rows, hidden), torch.randn(vocabulary, hidden), torch.randint(0, vocabulary, (rows,)))
    assert Largest.seen < logprob.CHUNK_BYTES / 4 + vocabulary < rows * vocabulary
