"""The losses, each a function of tensors. Means run over the batch unless said."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from stack.diffusion.schedule import per_sample


def score_gap_loss(x: Tensor, x0_fake: Tensor, x0_teacher: Tensor, h: Tensor) -> Tensor:
    """mse(x, stop_grad(x - g)) / 2 with g = h (x0_fake - x0_teacher) / mean|x - x0_teacher|.

    Its gradient in x is g over the number of elements: the score difference of Theorem 1 in x0
    space, with the per-sample normaliser of DMD2 (arXiv 2405.14867).

    Args:
        x: (B, ...) student samples, with gradient. x0_fake, x0_teacher: (B, ...) predictions at
            x_t, the teacher's after guidance. h: (B,) weights. Gradient flows into x alone.
    """
    x0_fake, x0_teacher, h = x0_fake.detach().float(), x0_teacher.detach().float(), h.detach()
    at = x.detach().float()
    scale = (at - x0_teacher).abs().flatten(1).mean(1).clamp_min(1e-8)
    gap = per_sample(h / scale, at) * (x0_fake - x0_teacher)
    return 0.5 * (x.float() - (at - gap)).square().mean()


def denoising_loss(prediction: Tensor, x0: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared error of an x0 prediction; (B, ...), (B, ...), weight (B,)."""
    error = (prediction.float() - x0.float()).square().flatten(1).mean(1)
    return (weight * error).mean()


def generator_gan_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss (Goodfellow et al. 2014, sec. 3) on the student's logits (B, heads)."""
    return softplus(-fake_logits.float()).mean()


def discriminator_gan_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Logistic loss of the discriminator (the same paper's eq. 1, negated) on diffused data and
    samples, (B, heads) each; at its best the logit is log p / q."""
    return softplus(-real_logits.float()).mean() + softplus(fake_logits.float()).mean()


def approximate_r1(logits: Tensor, perturbed_logits: Tensor, gamma: float) -> Tensor:
    """gamma times the mean squared change of the logits under a small perturbation of x_t.

    Stands for the R1 penalty (Mescheder et al. 2018) without second derivatives; evaluated on
    diffused data, never on clean data.
    """
    return gamma * (logits.float() - perturbed_logits.float()).square().mean()
