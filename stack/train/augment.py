"""EDM's augmentation of pictures (Karras et al. 2022, arXiv 2206.00364, Appendix F.2), of which
the network is told so that what it generates shows none of it.

Probabilities, sizes, the numbers told and the resampling are those of the code released with the
paper (NVlabs/edm, AugmentPipe as train.py sets it up), of which the appendix gives the outline: a
published network's input for them reads what is told here.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stack.diffusion.schedule import per_sample
from stack.util import keyed

AUGMENT_DIM = 9
"""Numbers that tell what was done: two mirrorings (0 or 1); the scale; a rotation's cosine less one
and sine; the stretch times cosine and sine of its direction; a shift to the right and down. Scale,
stretch and shift are told in standard deviations, angles count counter-clockwise. (An oblique
stretch and its reverse in the opposite direction are told alike.)"""

_SCALE_STD = 0.2
"""Of log2 of scale and of stretch."""
_SHIFT_STD = 0.125
"""In sides of the picture."""
_OBLIQUE = 0.5
"""Probability that a stretch is in any direction; it is from side to side otherwise."""

# sym6's low-pass filter (Daubechies 1992, Table 6.3; PyWavelets, "sym6"): orthogonal to itself
# moved by 2, 4, ..., so that what it doubles and halves again is as before.
_SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
_MARGIN = 3
"""Pixels around the picture that its edge needs while it is filtered."""


def augment(
    images: Tensor, probability: float, *, seed: int, iteration: int, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Change square pictures (B, C, H, H), and tell how, (B, AUGMENT_DIM); a function of the key
    alone.

    Every second picture is mirrored; any other change is made with ``probability``. What comes in
    from outside is the picture's reflection.
    """
    key: dict[str, Any] = {"seed": seed, "iteration": iteration, "positions": positions}
    u = keyed.uniform((10,), role="augment", **key).unbind(1)
    n = keyed.normal((4,), role="augment/size", **key).unbind(1)

    def maybe(chance: Tensor, value: Tensor, often: float = probability) -> Tensor:
        return torch.where(chance < often, value, torch.zeros_like(value))

    mirror, upend = (u[0] < 0.5).float(), maybe(u[1], (u[2] < 0.5).float())
    scale, stretch = maybe(u[3], n[0]), maybe(u[6], n[1])
    turn = maybe(u[4], (2 * u[5] - 1) * math.pi)
    along = maybe(u[9], (2 * u[7] - 1) * math.pi, _OBLIQUE)
    right, down = (maybe(u[8], number) for number in n[2:])

    # Where each pixel comes from, so the last change first, y down: a shift, a stretch, a turn.
    zoom, squeeze = (scale * -_SCALE_STD).exp2(), (stretch * -_SCALE_STD).exp2()
    inverse = _rotation(-along) @ _diagonal(squeeze, 1 / squeeze) @ _rotation(along)
    inverse = _diagonal(zoom, zoom) @ _rotation(turn) @ inverse
    shift = torch.stack((right, down), dim=1) * (_SHIFT_STD * images.shape[3])
    images = torch.where(per_sample(mirror, images) > 0, images.flip(3), images)
    images = torch.where(per_sample(upend, images) > 0, images.flip(2), images)
    moved = torch.stack((scale, turn, stretch, right, down), dim=1).abs().sum(1) > 0
    changed = torch.where(per_sample(moved, images), _resample(images, inverse, shift), images)
    told = (
        *(mirror, upend, scale, turn.cos() - 1, turn.sin()),
        *(stretch * along.cos(), stretch * along.sin(), right, down),
    )
    return changed, torch.stack(told, dim=1)


def _resample(images: Tensor, inverse: Tensor, shift: Tensor) -> Tensor:
    """Pixel p of the result, from the middle, is pixel inverse (p - shift) of images (B, C, H, H).

    Bilinear, at twice the size, between sym6's filters; the picture is continued by its reflection
    for its own size on each side, and by zero.
    """
    side = images.shape[3]
    up, down = _filters(side, images.device)
    # In the doubled picture, what the filter makes of p lies around 2 p - 1/2.
    offset = inverse @ (0.25 - shift[..., None]) * 2 - 0.5
    reach = side + 2 * _MARGIN
    theta = torch.cat((inverse * reach, offset), dim=2) / (len(up) / 2)
    grid = F.affine_grid(theta, [len(images), 1, 2 * reach, 2 * reach], align_corners=False)
    return down @ F.grid_sample(up @ images @ up.T, grid, align_corners=False) @ down.T


@functools.cache
def _filters(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What doubles an axis of so many pixels, with its reflection, (2 (3 side - 2), side), and what
    halves it again, the margin cut off, (side, 2 (side + 2 margin))."""
    taps = torch.tensor(_SYM6)

    def spread(pixels: int) -> Tensor:
        """(2 pixels, pixels): pixel k around place 2 k of the doubled axis."""
        tap = torch.arange(2 * pixels)[:, None] - 2 * torch.arange(pixels) + 5
        inside = (tap >= 0) & (tap < len(taps))
        return torch.where(inside, taps[tap.clamp(0, len(taps) - 1)], 0.0)

    place = torch.arange(1 - side, 2 * side - 1).abs()
    mirrored = (side - 1 - (place - (side - 1)).abs())[:, None] == torch.arange(side)
    down = spread(side + 2 * _MARGIN)[:, _MARGIN:-_MARGIN].T
    return (spread(3 * side - 2) @ mirrored.float()).to(device), down.to(device)


def _diagonal(first: Tensor, second: Tensor) -> Tensor:
    """(B, 2, 2)."""
    return torch.diag_embed(torch.stack((first, second), dim=1))


def _rotation(angle: Tensor) -> Tensor:
    """(B, 2, 2) of angles (B,)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), 1), torch.stack((sin, cos), 1)), dim=1)
