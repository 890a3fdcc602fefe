"""bfloat16 without masters: rounding by chance is unbiased and exact where it can be, and a remainder holds what is cut."""

from __future__ import annotations

import torch

from luthier.kernels.rounding import round_stochastically, split


def test_stochastic_rounding_is_right_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(64) * torch.logspace(-6, 6, 64)
    draws = torch.stack([round_stochastically(value, generator).double() for _ in range(4000)])
    step = (draws.amax(0) - draws.amin(0)).clamp_min(1e-30)
    assert ((draws.mean(0) - value.double()).abs() / step).max() < 0.05
    assert all(len(column.unique()) <= 2 for column in draws.T), "only the two neighbours"


def test_what_bfloat16_holds_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(1000).to(torch.bfloat16)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf")]).to(torch.bfloat16)
    for value in (exact, special):
        assert torch.equal(round_stochastically(value.float(), generator), value)
    assert round_stochastically(torch.tensor([float("nan")]), generator).isnan().all()


def test_a_value_is_its_rounding_and_a_remainder() -> None:
    value = torch.randn(10_000)
    near, left = split(value)
    assert torch.equal(near, value.to(torch.bfloat16))
    error = (near.float() + left.float() - value).abs() / value.abs()
    assert error.max() < 2**-15


def test_a_pair_that_is_put_together_falls_into_the_same_parts() -> None:
    ties = (torch.arange(1, 500) / 256 + 1 / 512).float()
    value = torch.cat([torch.randn(10_000), ties, -ties])
    near, left = split(value)
    assert torch.equal((near.float() + left.float()).to(torch.bfloat16), near)
