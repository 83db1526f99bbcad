"""Table 1 and Table 6: f, its derivatives and h of every divergence."""

from __future__ import annotations

from math import log, sqrt

import pytest
import torch

from stack.fdistill.divergence import DIVERGENCES, Divergence

# Table 1 as printed: f(r), h(r).
TABLE_1 = {
    "reverse_kl": ("-log(r)", "1"),
    "softened_reverse_kl": ("(r + 1) * log(1/2 + 1/(2*r))", "1/(r + 1)"),
    "jensen_shannon": ("r * log(r) - (r + 1) * log((r + 1)/2)", "r/(r + 1)"),
    "squared_hellinger": ("1 - sqrt(r)", "sqrt(r)/4"),
    "forward_kl": ("r * log(r)", "r"),
    "jeffreys": ("(r - 1) * log(r)", "r + 1"),
}
# Table 6: exponents of f''(r) for r -> infinity and r -> 0.
TABLE_6 = {
    "reverse_kl": (-2.0, -2.0),
    "softened_reverse_kl": (-3.0, -2.0),
    "jensen_shannon": (-2.0, -1.0),
    "squared_hellinger": (-1.5, -1.5),
    "forward_kl": (-1.0, -1.0),
    "jeffreys": (-1.0, -2.0),
}
ROWS = list(DIVERGENCES.values())
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def ratios() -> torch.Tensor:
    return torch.logspace(-12, 12, 241, dtype=torch.float64)


def test_the_table_has_the_six_rows_of_the_paper() -> None:
    assert list(DIVERGENCES) == list(TABLE_1)
    assert all(name == row.name for name, row in DIVERGENCES.items())


@each_row
def test_f_and_h_are_those_of_table_1(row: Divergence) -> None:
    f, h = TABLE_1[row.name]
    for r in torch.logspace(-4, 4, 33, dtype=torch.float64):
        names = {"r": r.item(), "log": log, "sqrt": sqrt}
        assert row.f(r).item() == pytest.approx(eval(f, names), rel=1e-10, abs=1e-12)
        assert row.h(r).item() == pytest.approx(eval(h, names), rel=1e-12)


@each_row
def test_f_is_a_convex_generator_with_f_of_1_zero(row: Divergence) -> None:
    assert row.f(torch.ones((), dtype=torch.float64)).item() == pytest.approx(0, abs=1e-15)
    assert (row.d2f(ratios()) > 0).all()


@each_row
def test_derivatives_agree_with_autograd(row: Divergence) -> None:
    r = ratios().requires_grad_()
    (df,) = torch.autograd.grad(row.f(r).sum(), r)
    (d2f,) = torch.autograd.grad(row.df(r).sum(), r)
    # The terms of f and f' cancel in the tails, so the error is measured against them.
    assert ((row.df(r) - df).abs() <= 1e-13 * (1 + r.log().abs() + 1 / r)).all()
    assert ((row.d2f(r) - d2f).abs() <= 1e-13 * row.d2f(r) + 1e-15 * (1 / r + r**-2)).all()


@each_row
def test_h_is_the_second_derivative_times_r_squared(row: Divergence) -> None:
    r = ratios()
    torch.testing.assert_close(row.h(r), row.d2f(r) * r**2, rtol=1e-12, atol=0.0)


@each_row
def test_tail_rates_are_those_of_table_6(row: Divergence) -> None:
    for (low, high), rate in zip(((1e6, 1e8), (1e-6, 1e-8)), TABLE_6[row.name], strict=True):
        at = row.d2f(torch.tensor([low, high], dtype=torch.float64)).log()
        slope = (at[1] - at[0]) / (log(high) - log(low))
        assert slope.item() == pytest.approx(rate, abs=1e-4)


CLOSED_FORM = {
    "reverse_kl": lambda log_r: torch.ones_like(log_r),
    "softened_reverse_kl": lambda log_r: 1 / (1 + log_r.exp()),
    "jensen_shannon": lambda log_r: 1 / (1 + (-log_r).exp()),
    "squared_hellinger": lambda log_r: (log_r / 2).exp() / 4,
    "forward_kl": lambda log_r: log_r.exp(),
    "jeffreys": lambda log_r: 1 + log_r.exp(),
}


@each_row
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_h_from_log_is_exact_up_to_80(row: Divergence, dtype: torch.dtype, rtol: float) -> None:
    log_r = torch.linspace(-80, 80, 1601, dtype=torch.float64).to(dtype)
    h = row.h_from_log(log_r)
    assert h.dtype == dtype
    torch.testing.assert_close(h.double(), CLOSED_FORM[row.name](log_r.double()), rtol=rtol, atol=0)


@each_row
def test_h_is_finite_and_positive_for_every_finite_logit(row: Divergence) -> None:
    limit = torch.finfo(torch.float32).max
    log_r = torch.tensor([-limit, -3e38, -1e4, -81.0, -80.0, 0.0, 80.0, 81.0, 1e4, 3e38, limit])
    h = row.h_from_log(log_r)
    assert h.isfinite().all()
    assert (h > 0).all()
    assert (h[:4] == h[4]).all()
    assert (h[7:] == h[6]).all()


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)])
def test_reverse_kl_gives_ones_of_the_shape_of_r(shape: tuple[int, ...]) -> None:
    r = torch.rand(shape) + 0.1
    for h in (DIVERGENCES["reverse_kl"].h(r), DIVERGENCES["reverse_kl"].h_from_log(r.log())):
        assert torch.equal(h, torch.ones(shape))


@each_row
def test_h_keeps_shape_and_is_monotone(row: Divergence) -> None:
    assert row.h(torch.tensor(2.0)).shape == ()
    change = row.h(ratios()).diff()
    falls = row.name == "softened_reverse_kl"
    assert (change <= 0).all() if falls else (change >= 0).all()
