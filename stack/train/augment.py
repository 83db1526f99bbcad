"""EDM's augmentation of pictures (Karras et al. 2022, arXiv 2206.00364, Appendix F.2), of which
the network is told so that what it generates shows none of it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stack.diffusion.schedule import per_sample
from stack.util import keyed

AUGMENT_DIM = 9
"""Numbers that tell what was done: two mirrorings, log2 of the scale, a rotation's cosine less one
and sine, log2 of a stretch times cosine and sine of twice its direction, a shift in x and y."""

_SCALE_STD = 0.2
"""Of log2 of scale and of stretch."""
_SHIFT_STD = 0.125
"""In sides of the picture."""


def augment(
    images: Tensor, probability: float, *, seed: int, iteration: int, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Change pictures (B, C, H, W), and tell how, (B, AUGMENT_DIM); a function of the key alone.

    Every second picture is mirrored; any other change is made with ``probability``. What comes in
    from outside is the picture's reflection.
    """
    u = keyed.uniform(
        (9,), seed=seed, iteration=iteration, role="augment", positions=positions
    ).unbind(1)
    n = keyed.normal(
        (4,), seed=seed, iteration=iteration, role="augment/size", positions=positions
    ).unbind(1)

    def maybe(chance: Tensor, value: Tensor) -> Tensor:
        return torch.where(chance < probability, value, torch.zeros_like(value))

    mirror, upend = (u[0] < 0.5).float(), maybe(u[1], (u[2] < 0.5).float())
    scale = maybe(u[3], n[0] * _SCALE_STD)
    turn = maybe(u[4], (2 * u[5] - 1) * math.pi)
    stretch, along = maybe(u[6], n[1] * _SCALE_STD), (2 * u[7] - 1) * math.pi
    right, down = (maybe(u[8], number * _SHIFT_STD) for number in n[2:])

    linear = _diagonal(1 - 2 * mirror, 1 - 2 * upend)
    linear = _diagonal(scale.exp2(), scale.exp2()) @ linear
    linear = _rotation(turn) @ linear
    linear = (
        _rotation(along)
        @ _diagonal(stretch.exp2(), (-stretch).exp2())
        @ (_rotation(-along) @ linear)
    )
    # grid_sample asks where each new pixel comes from, on a picture that spans [-1, 1].
    inverse = torch.linalg.inv(linear)
    shift = 2 * torch.stack((right, down), dim=1)[..., None]
    theta = torch.cat((inverse, -inverse @ shift), dim=2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    changed = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    told = (
        *(mirror, upend, scale, turn.cos() - 1, turn.sin()),
        *(stretch * (2 * along).cos(), stretch * (2 * along).sin(), right, down),
    )
    # Where nothing but a mirror's whole pixels moved, none of the resampling's rounding is taken.
    still = torch.stack(told, dim=1)[:, 1:].abs().sum(1) == 0
    flipped = torch.where(per_sample(mirror, images) > 0, images.flip(3), images)
    return torch.where(per_sample(still, images), flipped, changed), torch.stack(told, dim=1)


def _diagonal(first: Tensor, second: Tensor) -> Tensor:
    """(B, 2, 2)."""
    return torch.diag_embed(torch.stack((first, second), dim=1))


def _rotation(angle: Tensor) -> Tensor:
    """(B, 2, 2) of angles (B,)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), 1), torch.stack((sin, cos), 1)), dim=1)
