"""Precision and recall against a brute-force float64 reference, ties and crowds included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stack.evaluate.precision_recall import precision_recall


def inside(points: Tensor, balls: Tensor, k: int) -> Tensor:
    """Which points lie in a ball around one of the others: bool (N,)."""

    def squared(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None].double() - b[None].double()).square().sum(-1)

    radii = squared(balls, balls).fill_diagonal_(torch.inf).sort(1).values[:, k - 1]
    return (squared(points, balls) <= radii).any(1)


def brute_force(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    pairs = ((fake, real), (real, fake))
    precision, recall = (inside(a, b, k).double().mean().item() for a, b in pairs)
    return precision, recall


def gaussian(n: int, dim: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * scale + shift


def repeated(n: int, dim: int, copies: int, jitter: float) -> Tensor:
    few = gaussian(n // copies, dim, 7).repeat(copies, 1)
    return few + jitter * gaussian(len(few), dim, 8)


CASES = {
    "same distribution": (gaussian(400, 8, 0), gaussian(300, 8, 1)),
    "narrow": (gaussian(400, 8, 0), gaussian(300, 8, 1, scale=0.3)),
    "wide": (gaussian(400, 8, 0), gaussian(300, 8, 1, scale=2.0)),
    "apart": (gaussian(100, 4, 0), gaussian(100, 4, 1, shift=50.0)),
    "far from the origin": (gaussian(300, 8, 0, shift=1e3), gaussian(300, 8, 1, shift=1e3)),
    "many dimensions": (gaussian(80, 512, 0), gaussian(70, 512, 1)),
    "the same set": (gaussian(300, 8, 0), gaussian(300, 8, 0)),
    "collapsed onto copies": (gaussian(300, 8, 0), repeated(300, 8, 60, 0.0)),
    "nearly collapsed": (gaussian(300, 8, 0), repeated(300, 8, 60, 1e-6)),
    "both crowded": (repeated(300, 8, 30, 1e-6), repeated(240, 8, 40, 1e-6)),
    "collapsed but for rounding": (gaussian(300, 8, 0), repeated(300, 8, 100, 1e-7)),
    "collapsed within rounding": (gaussian(300, 64, 0), repeated(300, 64, 60, 1e-3)),
    "collapsed onto the real ones": (repeated(300, 64, 60, 2e-3), repeated(300, 64, 60, 1e-3)),
    "barely enough samples": (gaussian(6, 3, 0), gaussian(7, 3, 1)),
}


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [64, 2048])
@pytest.mark.parametrize("name", CASES)
def test_equals_brute_force(name: str, block: int, k: int) -> None:
    real, fake = CASES[name]
    assert precision_recall(real, fake, k, block)[:2] == brute_force(real, fake, k)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(2, 5), st.sampled_from([0, 0.1, 1e3]))
def test_equals_brute_force_where_every_distance_is_a_tie(
    seed: int, dim: int, side: int, offset: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    real, fake = (
        torch.randint(side, (n, dim), generator=generator).float() + offset for n in (60, 45)
    )
    assert precision_recall(real, fake, 3, 32)[:2] == brute_force(real, fake, 3)


def test_extremes() -> None:
    real = gaussian(200, 4, 0)
    assert precision_recall(real, real)[:2] == (1, 1)
    assert precision_recall(real, real + 1000)[:2] == (0, 0)
    centre = real.mean(0) + 1e-3 * gaussian(100, 4, 1)
    precision, recall, *_ = precision_recall(real, centre)
    assert precision == 1
    assert recall < 0.1


def test_low_precision_products_elsewhere_do_not_change_the_answer() -> None:
    real, fake = CASES["same distribution"]
    torch.set_float32_matmul_precision("medium")
    try:
        assert precision_recall(real, fake)[:2] == brute_force(real, fake, 3)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [((3, 2), (9, 2), "more than 3"), ((9, 2), (2, 2), "more than 3"), ((9, 2), (9, 3), "dim")],
)
def test_bad_shapes_are_refused(real: tuple, fake: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        precision_recall(torch.zeros(real), torch.zeros(fake))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("name", ["same distribution", "narrow", "wide", "many dimensions"])
def test_agrees_with_a_published_implementation(name: str, k: int) -> None:
    """Naeem et al.'s (2020) prdc, which leaves a ball's surface out: no matter without ties."""
    prdc = pytest.importorskip("prdc")
    real, fake = CASES[name]
    theirs = prdc.compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=k)
    ours = precision_recall(real, fake, k)
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-12)
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [64, 2048])
def test_recall_without_a_group_is_that_of_the_others(name: str, block: int) -> None:
    """Everything at once gives what leaving a group out and beginning anew gives, and the same
    precision and recall of the whole."""
    real, fake = CASES[name]
    count = min(5, len(fake) // 3)
    groups = torch.randperm(len(fake), generator=torch.Generator().manual_seed(0)) % count
    found = precision_recall(real, fake, 3, block, groups)
    assert found[:2] == brute_force(real, fake, 3)
    wanted = [brute_force(real, fake[groups != group], 3)[1] for group in range(count)]
    crowded = "collapsed" in name or "crowded" in name
    assert found.recalls.tolist() == pytest.approx(wanted, abs=0.02 if crowded else 1e-12)
    assert torch.equal(found.inside, inside(fake, real, 3))
