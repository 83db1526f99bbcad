"""What figures of many features cost: counted, as neither the machine's allocator nor its load
counts."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stack.evaluate.frechet import Moments
from stack.evaluate.intervals import frechet_estimate, manifold_estimates
from stack.parallel.memory import PeakBytes
from tests.evaluate.costs import cloud, collapsed


class Elements(TorchDispatchMode):
    """Elements of all tensors that come up."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))
        return result


@pytest.mark.slow
@pytest.mark.parametrize("points", [0, 10])
def test_memory_follows_from_the_features(points: int) -> None:
    """4000 x 128 and twice the samples: what goes with 4 MB more of features, where the distances
    of all pairs would be 190 MB more."""
    small, large = (_peak(samples, 128, points) for samples in (4_000, 8_000))
    assert large - small < 100e6


def _peak(samples: int, width: int, points: int) -> int:
    """Bytes beside the features."""
    real, fake = cloud(samples, width, 1), _generated(samples, width, points)
    moments = Moments(width)
    moments.update(real)
    with PeakBytes() as memory:
        frechet_estimate(fake, moments)
        manifold_estimates(real, fake)
    return memory.peak


def _generated(samples: int, width: int, points: int) -> Tensor:
    return collapsed(samples, width, 2, points) if points else cloud(samples, width, 2)


@pytest.fixture(scope="module")
def ordinary() -> tuple[int, int]:
    return _work(0)


@pytest.mark.parametrize("points", [1, 10])
def test_a_collapsed_student_costs_little_more(points: int, ordinary: tuple[int, int]) -> None:
    """2000 features of it, which float32 cannot tell apart: eighteen times as much, and 56 bytes a
    pair more at a time, where every pair of them is held and taken from its differences."""
    elements, peak = _work(points)
    assert elements < 2.5 * ordinary[0]
    assert peak < ordinary[1] + 16 * 2000**2


def _work(points: int) -> tuple[int, int]:
    """Elements that are computed, and bytes at the peak."""
    real, fake = cloud(2000, 64, 1), _generated(2000, 64, points)
    with PeakBytes() as memory, Elements() as elements:
        manifold_estimates(real, fake)
    return elements.count, memory.peak
