"""The discriminator's ratio against one in closed form, and the counting that watches it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from stack.diffusion.schedule import DiscreteSchedule, add_noise
from stack.diffusion.timesteps import UniformTimes
from stack.fdistill.calibration import BINS, NoiseLevels, Reliability, critic_figures, similarity
from stack.fdistill.divergence import DIVERGENCES
from stack.fdistill.losses import discriminator_gan_loss
from stack.fdistill.ratio import log_density_ratio
from stack.nets.heads import MultiHead, VectorHead
from stack.nets.toy import MixtureDenoiser

SCHEDULE = DiscreteSchedule.scaled_linear()
TIMES = UniformTimes(20, 980)
LEVELS = NoiseLevels(TIMES.log_snr_edges(SCHEDULE, 10), SCHEDULE.log_snr)
DATA, STUDENT = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.0, 0.0]])
"""Means of two unit Gaussians in the plane."""
NETWORK = MixtureDenoiser(SCHEDULE, DATA, 1.0)
SIDES = ("real", "fake")
WIDE = {"r_min": 1e-4, "r_max": 1e4}


def diffused(mean: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x_t (n, 2) and t (n,) of N(mean, 1)."""
    x0 = mean + torch.randn(n, 2, generator=generator)
    t = torch.randint(20, 981, (n,), generator=generator)
    return add_noise(x0, torch.randn(n, 2, generator=generator), t, SCHEDULE), t


def exact(x_t: Tensor, t: Tensor) -> Tensor:
    """log p_t / q_t: both have unit variance at every t, and means alpha(t) apart."""
    alpha = SCHEDULE.alpha(t)[:, None]
    return (
        alpha.flatten() * (x_t * DATA).sum(1) - alpha.flatten().square() * DATA.square().sum() / 2
    )


@cache
@torch.enable_grad()
def converged() -> MultiHead:
    """Heads after the project's own loss, with a rate that falls to zero."""
    torch.manual_seed(0)
    generator, steps = torch.Generator().manual_seed(1), 2500
    heads = MultiHead([VectorHead(NETWORK.feature_channels, 64)])
    optimizer = torch.optim.AdamW(heads.parameters(), lr=5e-3, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        real, t = diffused(DATA, 1024, generator)
        fake, s = diffused(STUDENT, 1024, generator)
        logits = heads(NETWORK.features(torch.cat((real, fake)), torch.cat((t, s)), real[:, :0]))
        optimizer.zero_grad()
        discriminator_gan_loss(*logits.chunk(2)).backward()
        optimizer.step()
        decay.step()
    return heads


@torch.no_grad()
def logits_of(x_t: Tensor, t: Tensor) -> Tensor:
    return converged()(NETWORK.features(x_t, t, x_t[:, :0]))


@pytest.mark.slow
def test_a_converged_discriminator_is_calibrated_at_every_noise_level() -> None:
    generator = torch.Generator().manual_seed(2)
    counts = Reliability(len(LEVELS))
    for mean, real in ((DATA, True), (STUDENT, False)):
        x_t, t = diffused(mean, 400_000, generator)
        counts.add(logits_of(x_t, t)[:, 0], LEVELS.of(t), real=real)
    assert float(counts.errors().max()) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", DIVERGENCES)
def test_h_of_a_converged_discriminator_is_right_to_a_tenth(name: str) -> None:
    x_t, t = diffused(STUDENT, 100_000, torch.Generator().manual_seed(3))
    divergence = DIVERGENCES[name]
    h = divergence.h_from_log(log_density_ratio(logits_of(x_t, t), **WIDE))
    error = (h / divergence.h_from_log(exact(x_t, t)) - 1).abs()
    for level in range(len(LEVELS)):
        assert float(error[LEVELS.of(t) == level].median()) <= 0.1


def test_a_discriminator_that_does_not_look_is_as_wrong_as_its_answer() -> None:
    """Always 80 % for data, of which there is a half: the error is 0.3."""
    logits = torch.full((1000,), 4.0).log()
    level = torch.arange(1000) % 3
    counts = Reliability(3).update(logits, logits, level)
    torch.testing.assert_close(counts.errors(), torch.full((3,), 0.3, dtype=torch.float64))
    assert counts.table.sum((0, 1))[:2].tolist() == [1000, 1000]


def test_counts_are_those_of_a_loop_and_add_up() -> None:
    torch.manual_seed(0)
    real, fake, level = 3 * torch.randn(200), 3 * torch.randn(200), torch.randint(4, (200,))
    counts = Reliability(4).update(real[:50], fake[:50], level[:50])
    counts.update(real[50:], fake[50:], level[50:])
    for a in range(4):
        for b in range(BINS):
            sides = [logits[level == a].double().sigmoid() for logits in (real, fake)]
            here = [p[(p * BINS).long() == b] for p in sides]
            expected = [len(here[0]), len(here[1]), float(torch.cat(here).sum())]
            assert counts.table[a, b].tolist() == pytest.approx(expected)


def test_a_level_without_samples_has_no_error_and_nothing_else_fails() -> None:
    logits = torch.tensor([float("nan"), 1e9, -1e9])
    errors = Reliability(2).update(logits, logits, torch.zeros(3, dtype=torch.long)).errors()
    assert errors.isfinite().tolist() == [True, False]


def test_levels_are_quantiles_of_the_times_from_most_noise_to_least() -> None:
    levels = LEVELS.of(torch.arange(20, 981))
    assert torch.bincount(levels).tolist() == pytest.approx([96.1] * 10, abs=1.5)
    assert levels[0] == len(LEVELS) - 1
    assert levels[-1] == 0


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 2)])
def test_what_a_critic_step_tells(shape: tuple[int, ...]) -> None:
    x0, x = torch.randn(shape), torch.randn(shape, requires_grad=True)
    real, generated = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3)
    told = critic_figures(real, generated, torch.arange(6), x0, x)
    sides = {f"{what}/{side}" for what in ("logit", "latent", "thumbnail") for side in SIDES}
    assert set(told) == sides | {"t/gan"}
    assert not any(value.requires_grad for value in told.values())
    torch.testing.assert_close(told["logit/real"], real.mean(1).detach())
    assert told["latent/fake"].shape == shape[:2]
    torch.testing.assert_close(told["latent/real"].mean(), x0.mean())


def test_likeness_is_one_for_one_picture_and_none_for_the_data_themselves() -> None:
    torch.manual_seed(0)
    x0 = torch.randn(64, 4, 8, 8)
    alike = torch.randn(1, 4, 8, 8).expand(64, -1, -1, -1)
    told = critic_figures(torch.zeros(64, 1), torch.zeros(64, 1), torch.zeros(64), x0, alike)
    centre = told["thumbnail/real"].mean(0)
    assert told["thumbnail/fake"].shape == (64, 4 * 16)
    assert similarity(told["thumbnail/fake"], centre) == pytest.approx(1, abs=1e-5)
    assert similarity(told["thumbnail/real"], centre) == pytest.approx(0, abs=0.02)
    pairs = torch.nn.functional.cosine_similarity
    few = told["thumbnail/real"][:3].double() - centre.double()
    expected = sum(pairs(few[i], few[j], dim=0) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    assert similarity(told["thumbnail/real"][:3], centre) == pytest.approx(float(expected))
