"""EDM's augmentation: what it does to a picture, and that it tells, in EDM's own numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stack.train.augment import _SYM6, AUGMENT_DIM, _resample, augment


def made(probability: float, count: int = 400, *, side: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, changed ones, and what was told."""
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    changed, told = augment(images, probability, seed=0, iteration=3, positions=torch.arange(count))
    assert changed.shape == images.shape
    assert told.shape == (count, AUGMENT_DIM)
    return images, changed, told


def test_half_are_mirrored_and_nothing_else_at_probability_zero() -> None:
    images, changed, told = made(0.0)
    mirrored = told[:, 0] > 0
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.08)
    assert not told[:, 1:].any()
    assert torch.equal(changed[mirrored], images[mirrored].flip(3))
    assert torch.equal(changed[~mirrored], images[~mirrored])


def test_each_change_comes_as_often_as_asked() -> None:
    *_, told = made(0.12, 4000)
    upended, scaled, turned = told[:, 1] != 0, told[:, 2] != 0, told[:, 4] != 0
    assert upended.float().mean() == pytest.approx(0.06, abs=0.015)
    for often in (scaled, turned, told[:, 5] != 0, told[:, 7] != 0):
        assert often.float().mean() == pytest.approx(0.12, abs=0.02)
    assert torch.equal(told[:, 7] != 0, told[:, 8] != 0), "a shift is one change"
    stretched = told[told[:, 5] != 0]
    straight = (stretched[:, 6] == 0).float()
    assert straight.mean() == pytest.approx(0.5, abs=0.08), "the others in any direction"
    numbers = (told[scaled, 2], told[:, 7][told[:, 7] != 0], stretched[straight > 0, 5])
    for number in numbers:
        assert number.std() == pytest.approx(1, abs=0.12), "told in standard deviations"


def alone(told: Tensor, which: list[int]) -> Tensor:
    """Samples at which nothing but ``which`` was done."""
    others = [i for i in range(AUGMENT_DIM) if i not in which]
    return ((told[:, which] != 0).any(1) & ~(told[:, others] != 0).any(1)).nonzero()[:, 0]


def test_an_upended_picture_is_upside_down() -> None:
    images, changed, told = made(0.12, 4000)
    rows = alone(told, [1])
    assert len(rows) > 20
    assert torch.equal(changed[rows], images[rows].flip(2))


def test_the_filter_is_daubechies() -> None:
    """Orthogonal to itself moved by pairs, and six moments vanish: those of order 6."""
    h = torch.tensor(_SYM6, dtype=torch.float64)
    signs = (-1.0) ** torch.arange(12, dtype=torch.float64)
    assert h.sum().item() == pytest.approx(math.sqrt(2))
    for move in range(0, 12, 2):
        assert (h[move:] @ h[: 12 - move]).item() == pytest.approx(float(move == 0), abs=1e-9)
    for order in range(6):
        moment = (signs * h * (torch.arange(12) / 11) ** order).sum()
        assert moment.item() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (0, -2), (-5, 7)])
def test_whole_pixels_are_moved_without_loss(shift: tuple[int, int]) -> None:
    """The filters undo each other, and what comes in is the reflection about the edge's pixels."""
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    moved = _resample(image, torch.eye(2)[None], torch.tensor([shift], dtype=torch.float32))
    right, down = shift
    wide = F.pad(image, (8, 8, 8, 8), mode="reflect")
    expected = wide[..., 8 - down : 24 - down, 8 - right : 24 - right]
    assert torch.allclose(moved, expected, atol=1e-4)


def blob(x: float, y: float, side: int = 33) -> Tensor:
    """A round spot at (x, y) of a picture that spans [-1, 1]."""
    at = (torch.arange(side) + 0.5) * 2 / side - 1
    spot = torch.exp(-((at[None, :] - x) ** 2 + (at[:, None] - y) ** 2) / 0.02)
    return spot.expand(1, 3, side, side)


def brightness(image: Tensor, at: Tensor) -> float:
    """Of a picture at a point (x, y)."""
    return F.grid_sample(image[None], at.view(1, 1, 1, 2), align_corners=False)[0, 0, 0, 0].item()


def test_told_geometry_is_what_happened_to_a_spot() -> None:
    """EDM's numbers, made into a matrix here, move the spot to where it is found. Angles are
    counter-clockwise in the picture, whose y points down."""
    start = torch.tensor([0.25, 0.1])
    image, checked = blob(*start.tolist()), 0
    for position in range(120):
        changed, told = augment(image, 0.5, seed=0, iteration=0, positions=torch.tensor([position]))
        mirror, upend, scale, cos, sin, along, across, right, down = told[0]
        turn = torch.stack((torch.stack((cos + 1, sin)), torch.stack((-sin, cos + 1))))
        expected = start * torch.stack((1 - 2 * mirror, 1 - 2 * upend)) * (0.2 * scale).exp2()
        expected = turn @ expected
        size = torch.hypot(along, across)
        direction = torch.atan2(-across, along) if across else torch.tensor(0.0)
        axis = torch.stack((direction.cos(), direction.sin()))
        part = (axis @ expected) * axis
        # Of an oblique stretch, its reverse in the opposite direction is told alike.
        ends = [
            part * (0.2 * stretch).exp2() + (expected - part) * (-0.2 * stretch).exp2()
            for stretch in ((size, -size) if across else (along,))
        ]
        ends = [end + 0.25 * torch.stack((right, down)) for end in ends]
        if max(end.abs().max() for end in ends) < 0.85:
            checked += 1
            found = max(ends, key=lambda end: brightness(changed[0], end))
            assert brightness(changed[0], found) > 0.75, position
            elsewhere = found - torch.tensor([0.3, 0.3]).copysign(found)
            if size == 0 and scale <= 0 and found.abs().max() < 0.5:
                assert brightness(changed[0], elsewhere) < 0.5, "the spot is small"
    assert checked > 70


def test_a_function_of_the_key_alone() -> None:
    images, changed, told = made(0.5, 8)
    again, told_again = augment(
        images[5:7], 0.5, seed=0, iteration=3, positions=torch.tensor([5, 6])
    )
    assert torch.allclose(again, changed[5:7], atol=1e-6)
    assert torch.equal(told_again, told[5:7])
    _, other = augment(images, 0.5, seed=0, iteration=4, positions=torch.arange(8))
    assert not torch.equal(other, told)
