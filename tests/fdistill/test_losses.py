"""The losses against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stack.diffusion.schedule import per_sample
from stack.fdistill import losses

SHAPES = [(3, 2), (3, 4, 5, 5)]


def samples(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, x0_fake, x0_teacher = (torch.randn(shape) for _ in range(3))
    return x.requires_grad_(), x0_fake, x0_teacher, torch.rand(shape[0]) + 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_the_score_gap_is_the_formula(shape: tuple[int, ...]) -> None:
    x, x0_fake, x0_teacher, h = samples(shape)
    losses.score_gap_loss(x, x0_fake, x0_teacher, h).backward()
    scale = (x - x0_teacher).abs().mean(dim=tuple(range(1, len(shape))))
    g = per_sample(h / scale, x) * (x0_fake - x0_teacher)
    torch.testing.assert_close(x.grad, g / x.numel(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_do_not_share_their_normaliser(shape: tuple[int, ...]) -> None:
    x, x0_fake, x0_teacher, h = samples(shape)
    losses.score_gap_loss(x, x0_fake, x0_teacher, h).backward()
    alone = x.detach()[:1].requires_grad_()
    losses.score_gap_loss(alone, x0_fake[:1], x0_teacher[:1], h[:1]).backward()
    torch.testing.assert_close(x.grad[:1] * shape[0], alone.grad, rtol=1e-4, atol=1e-7)


def test_score_gap_sends_no_gradient_to_the_scores_or_the_weight() -> None:
    x, *rest = samples((3, 2))
    others = [value.requires_grad_() for value in rest]
    losses.score_gap_loss(x, *others).backward()
    assert x.grad is not None
    assert all(value.grad is None for value in others)


def test_score_gap_is_finite_where_the_teacher_agrees_exactly() -> None:
    x = torch.ones(2, 2, requires_grad=True)
    losses.score_gap_loss(x, torch.ones(2, 2), torch.ones(2, 2), torch.ones(2)).backward()
    assert torch.equal(x.grad, torch.zeros(2, 2))


def test_score_gap_value_is_half_the_mean_square_of_g() -> None:
    x, x0_fake, x0_teacher, h = samples((3, 2))
    loss = losses.score_gap_loss(x, x0_fake, x0_teacher, h)
    g = torch.autograd.grad(loss, x)[0] * x.numel()
    torch.testing.assert_close(loss, g.square().mean() / 2)


def test_denoising_loss_weighs_samples_before_the_mean() -> None:
    x0, weight = torch.zeros(2, 3), torch.tensor([1.0, 10.0])
    prediction = torch.tensor([[1.0, 1, 1], [2, 0, 0]])
    loss = losses.denoising_loss(prediction, x0, weight)
    assert loss.item() == pytest.approx((1 * 1 + 10 * 4 / 3) / 2)


def test_gan_losses_are_the_logistic_ones() -> None:
    real, fake = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, -3.0]])

    def log_sigmoid(value: float) -> float:
        return -math.log1p(math.exp(-value))

    generator = -(log_sigmoid(0.5) + log_sigmoid(-3)) / 2
    discriminator = -(log_sigmoid(2) + log_sigmoid(-1)) / 2
    discriminator -= (log_sigmoid(-0.5) + log_sigmoid(3)) / 2
    assert losses.generator_gan_loss(fake).item() == pytest.approx(generator)
    assert losses.discriminator_gan_loss(real, fake).item() == pytest.approx(discriminator)


def test_the_best_discriminator_reads_the_log_ratio() -> None:
    """At the optimum of the GAN loss the logit is log p / q, not log q / p."""
    logits = torch.zeros(2, requires_grad=True)  # of two points
    p, q = torch.tensor([0.8, 0.2]), torch.tensor([0.4, 0.6])
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(
            p[i] * losses.discriminator_gan_loss(logits[i], torch.tensor(-100.0))
            + q[i] * losses.discriminator_gan_loss(torch.tensor(100.0), logits[i])
            for i in range(2)
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.detach(), (p / q).log(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.0])
def test_r1_is_gamma_times_the_mean_square_of_the_change(gamma: float) -> None:
    one, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.5, 0.0]])
    assert losses.approximate_r1(one, other, gamma).item() == pytest.approx(gamma * 4.25 / 2)


def test_losses_of_bf16_inputs_are_float32() -> None:
    x = torch.randn(2, 3, dtype=torch.bfloat16)
    for loss in (
        losses.score_gap_loss(x, x + 1, x - 1, torch.ones(2)),
        losses.denoising_loss(x, x + 1, torch.ones(2)),
        losses.generator_gan_loss(x),
        losses.discriminator_gan_loss(x, x),
        losses.approximate_r1(x, x + 1, 1.0),
    ):
        assert loss.dtype == torch.float32
