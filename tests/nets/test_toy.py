"""The two-dimensional example: exact teacher, exact starts, and the measure of coverage."""

from __future__ import annotations

import pytest
import torch

from stack.diffusion.schedule import DiscreteSchedule, add_noise
from stack.nets import toy
from stack.nets.heads import VectorHead
from stack.report.figures import mode_shares

SCHEDULE = DiscreteSchedule.scaled_linear()
CENTRE, STD = (0.9, 0.0), 0.7
NOTHING = torch.zeros(1, 0)
MODES = toy.ring(5, 1.8)


def teacher() -> toy.MixtureDenoiser:
    return toy.MixtureDenoiser(SCHEDULE, MODES, 0.25)


@pytest.mark.parametrize("t", [0, 50, 200, 500, 999])
def test_teacher_is_tweedies_formula(t: int) -> None:
    """E[x0 | x_t] = (x_t + sigma^2 grad log p_t(x_t)) / alpha, by autograd in float64."""
    time = torch.tensor(t)
    alpha, sigma = SCHEDULE.alpha(time).double(), SCHEDULE.sigma(time).double()
    x_t = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t.requires_grad_()
    variance = (alpha * 0.25) ** 2 + sigma**2
    squares = (x_t[:, None] - alpha * MODES).square().sum(-1)
    (score,) = torch.autograd.grad((-squares / (2 * variance)).logsumexp(1).sum(), x_t)
    exact = (x_t + sigma**2 * score) / alpha
    x0 = teacher()(x_t.detach().float(), time.expand(32), NOTHING)
    torch.testing.assert_close(x0.double(), exact.detach(), rtol=2e-4, atol=2e-4)


def test_fake_score_starts_as_the_exact_denoiser_of_the_start() -> None:
    """One Gaussian is a mixture of one mode, for which the teacher's formula is exact."""
    fake = toy.SkewedDenoiser(SCHEDULE, CENTRE, STD, width=8)
    exact = toy.MixtureDenoiser(SCHEDULE, torch.tensor([CENTRE]), STD)
    t = torch.tensor([0, 20, 115, 500, 999])
    x_t = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fake(x_t, t, NOTHING), exact(x_t, t, NOTHING))


def test_an_error_of_the_fake_score_is_weighed_in_its_own_target() -> None:
    """The residual is in v: a unit change of it costs one unit of loss at every t."""
    fake = toy.SkewedDenoiser(SCHEDULE, CENTRE, STD, width=8)
    t = torch.tensor([0, 20, 115, 500, 999])
    x_t = torch.randn(5, 2)
    before = fake(x_t, t, NOTHING)
    with torch.no_grad():
        fake.residual[-1].bias += 1
    change = (fake(x_t, t, NOTHING) - before).square().mean(1)
    torch.testing.assert_close(fake.loss_weight(t) * change, torch.ones(5), rtol=1e-3, atol=0)


def test_student_starts_as_a_sampler_of_the_start_not_its_mean() -> None:
    student = toy.SkewedStudent(SCHEDULE, CENTRE, STD, width=8)
    z = torch.randn(20000, 2, generator=torch.Generator().manual_seed(0))
    x = student(z, torch.full((20000,), 999), NOTHING)
    torch.testing.assert_close(x.mean(0), torch.tensor(CENTRE), rtol=0, atol=0.02)
    torch.testing.assert_close(x.std(0), torch.full((2,), STD), rtol=0, atol=0.02)


def test_both_starts_learn() -> None:
    for network in (
        toy.SkewedDenoiser(SCHEDULE, CENTRE, STD, width=8),
        toy.SkewedStudent(SCHEDULE, CENTRE, STD, width=8),
    ):
        network(torch.randn(4, 2), torch.full((4,), 500), NOTHING).sum().backward()
        assert network.residual[-1].weight.grad.any()


def test_data_are_the_mixture_and_follow_the_key() -> None:
    positions = torch.arange(5000)
    x = teacher().sample(positions, seed=0, iteration=3)
    shares = mode_shares(x.numpy(), MODES.numpy(), reach=3 * 0.25)
    # Three standard deviations hold 1 - exp(-9 / 2) of a plane's Gaussian.
    assert shares == pytest.approx([0.989 / 5] * 5, abs=0.03)
    part = torch.tensor([7, 4000])
    assert torch.equal(teacher().sample(part, seed=0, iteration=3), x[part])
    assert not torch.equal(teacher().sample(positions, seed=0, iteration=4), x)


@pytest.mark.parametrize("name", ["teacher", "fake"])
def test_features_suit_a_vector_head(name: str) -> None:
    fake = toy.SkewedDenoiser(SCHEDULE, CENTRE, STD, width=8)
    network = teacher() if name == "teacher" else fake
    x_t, t = torch.randn(6, 2, requires_grad=True), torch.arange(0, 600, 100)
    x0, (both,) = network.x0_and_features(x_t, t, NOTHING)
    (alone,) = network.features(x_t, t, NOTHING)
    assert torch.equal(both, alone)
    assert torch.equal(x0, network(x_t, t, NOTHING))
    assert (x0.requires_grad, both.requires_grad) == (False, True)
    assert alone.abs().max() < 5
    assert VectorHead(network.feature_channels, 8)(alone).shape == (6, 1)


def test_diffused_student_and_data_agree_at_the_last_time() -> None:
    """At T - 1 nothing but noise is left of either, so one call from noise is fair."""
    x0 = teacher().sample(torch.arange(4000), seed=0, iteration=0)
    eps = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    x_t = add_noise(x0, eps, torch.full((4000,), 999), SCHEDULE)
    torch.testing.assert_close(x_t.std(0), torch.ones(2), rtol=0, atol=0.05)
