"""EDM's augmentation: what it does to a picture, and that it tells."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stack.train.augment import AUGMENT_DIM, augment


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
    assert told[scaled, 2].std() == pytest.approx(0.2, abs=0.02)
    assert told[:, 7][told[:, 7] != 0].std() == pytest.approx(0.125, abs=0.015)


def alone(told: Tensor, which: list[int]) -> Tensor:
    """Samples at which nothing but ``which`` was done."""
    others = [i for i in range(AUGMENT_DIM) if i not in which]
    return ((told[:, which] != 0).any(1) & ~(told[:, others] != 0).any(1)).nonzero()[:, 0]


def test_an_upended_picture_is_upside_down() -> None:
    images, changed, told = made(0.12, 4000)
    rows = alone(told, [1])
    assert len(rows) > 20
    assert torch.allclose(changed[rows], images[rows].flip(2), atol=1e-4)


def blob(x: float, y: float, side: int = 33) -> Tensor:
    """A round spot at (x, y) of a picture that spans [-1, 1]."""
    at = (torch.arange(side) + 0.5) * 2 / side - 1
    spot = torch.exp(-((at[None, :] - x) ** 2 + (at[:, None] - y) ** 2) / 0.02)
    return spot.expand(1, 3, side, side)


def brightness(image: Tensor, at: Tensor) -> float:
    """Of a picture at a point (x, y)."""
    return F.grid_sample(image[None], at.view(1, 1, 1, 2), align_corners=False)[0, 0, 0, 0].item()


def test_told_geometry_is_what_happened_to_a_spot() -> None:
    """The numbers, made into a matrix here, move the spot to where it is found."""
    start = torch.tensor([0.25, 0.1])
    image, checked = blob(*start.tolist()), 0
    for position in range(120):
        changed, told = augment(image, 0.5, seed=0, iteration=0, positions=torch.tensor([position]))
        mirror, upend, scale, cos, sin, along, across, right, down = told[0]
        turn = torch.stack((torch.stack((cos + 1, -sin)), torch.stack((sin, cos + 1))))
        expected = start * torch.stack((1 - 2 * mirror, 1 - 2 * upend)) * scale.exp2()
        expected = turn @ expected
        stretch = torch.hypot(along, across)
        direction = torch.atan2(across, along) / 2
        axis = torch.stack((direction.cos(), direction.sin()))
        part = (axis @ expected) * axis
        expected = part * stretch.exp2() + (expected - part) * (-stretch).exp2()
        expected = expected + 2 * torch.stack((right, down))
        if expected.abs().max() < 0.9:
            checked += 1
            assert brightness(changed[0], expected) > 0.75, position
            elsewhere = expected - torch.tensor([0.3, 0.3]).copysign(expected)
            if stretch == 0 and scale <= 0 and expected.abs().max() < 0.5:
                assert brightness(changed[0], elsewhere) < 0.5, "the spot is small"
    assert checked > 80


def test_a_function_of_the_key_alone() -> None:
    images, changed, told = made(0.5, 8)
    again, told_again = augment(
        images[5:7], 0.5, seed=0, iteration=3, positions=torch.tensor([5, 6])
    )
    assert torch.allclose(again, changed[5:7], atol=1e-6)
    assert torch.equal(told_again, told[5:7])
    _, other = augment(images, 0.5, seed=0, iteration=4, positions=torch.arange(8))
    assert not torch.equal(other, told)
