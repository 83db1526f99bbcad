"""Theorem 1 and Fig. 4a on one-dimensional Gaussians, by quadrature in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stack.fdistill.divergence import DIVERGENCES

X = torch.linspace(-14, 14, 20001, dtype=torch.float64)
DX = (X[1] - X[0]).item()


def log_normal(x: Tensor, mean: float, std: float) -> Tensor:
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))


def expectation(log_q: Tensor, value: Tensor) -> float:
    return (log_q.exp() * value).sum().item() * DX


def f_divergence(name: str, mean: float, std: float) -> float:
    """D_f(N(0, 1) || N(mean, std^2)) = E_q[f(p / q)]."""
    log_q = log_normal(X, mean, std)
    return expectation(log_q, DIVERGENCES[name].f((log_normal(X, 0, 1) - log_q).exp()))


def theorem_1(name: str, mean: float, std: float) -> tuple[float, float]:
    """-E_q[h(r) (s_p - s_q) dG/dtheta] of G(z) = mean + std z, for theta = mean and std."""
    log_q = log_normal(X, mean, std)
    z = (X - mean) / std
    score_p, score_q = -X, -z / std
    weight = DIVERGENCES[name].h_from_log(log_normal(X, 0, 1) - log_q) * (score_p - score_q)
    return -expectation(log_q, weight), -expectation(log_q, weight * z)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.9), (-0.8, 1.1), (1.0, 0.8)])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradient_of_the_divergence_is_theorem_1(name: str, mean: float, std: float) -> None:
    step = 1e-4
    for index, (dm, ds) in enumerate(((step, 0.0), (0.0, step))):
        up, down = f_divergence(name, mean + dm, std + ds), f_divergence(name, mean - dm, std - ds)
        assert (up - down) / (2 * step) == pytest.approx(
            theorem_1(name, mean, std)[index], rel=1e-5, abs=1e-7
        )


# Fig. 4a at gaps 1, 2, 3: Var_q[h] / E_q[h]^2, then the literal Var_q[h] / E_q[h].
FIGURE_4A = {
    "jensen_shannon": ((0.256, 1.22, 4.07), (0.102, 0.275, 0.401)),
    "squared_hellinger": ((0.284, 1.72, 8.49), (0.063, 0.261, 0.689)),
    "jeffreys": ((0.43, 13.4, 2026), (0.859, 26.8, 4051)),
    "forward_kl": ((1.72, 53.6, 8102), (1.72, 53.6, 8102)),
    "softened_reverse_kl": ((0.112, 0.103, 0.049), None),
    "reverse_kl": ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_variance_of_h_is_that_of_figure_4a(name: str) -> None:
    normalised, literal = FIGURE_4A[name]
    for i, gap in enumerate((1, 2, 3)):
        log_q = log_normal(X, 0, 1)
        h = DIVERGENCES[name].h_from_log(log_normal(X, gap, 1) - log_q)
        mean = expectation(log_q, h)
        variance = expectation(log_q, (h - mean) ** 2)
        assert variance / mean**2 == pytest.approx(normalised[i], rel=0.05, abs=1e-9)
        if literal:
            assert variance / mean == pytest.approx(literal[i], rel=0.05, abs=1e-9)
