"""Mode coverage and likeness within a prompt, against hand-made cases and plain loops."""

from __future__ import annotations

from math import log

import pytest
import torch
import torch.nn.functional as F

from stack.evaluate.diversity import (
    group_similarities,
    in_batch_similarity,
    mode_counts,
    mode_entropy,
    total_variation,
)


@pytest.mark.parametrize(
    ("counts", "reference", "expected"),
    [
        ([1, 1], [5, 5], 0.0),
        ([1, 0], [0, 3], 1.0),
        ([3, 1], [1, 1], 0.25),
        ([2, 2, 0, 0], [1, 1, 1, 1], 0.5),
        ([0.1, 0.9], [10, 90], 0.0),
    ],
)
def test_total_variation(counts: list, reference: list, expected: float) -> None:
    for ours, theirs in ((counts, reference), (reference, counts)):
        assert total_variation(ours, theirs) == pytest.approx(expected, abs=1e-12)
        assert total_variation(torch.tensor(ours), theirs) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("counts", "reference"), [([1, 2], [1, 2, 3]), ([0, 0], [1, 1])])
def test_histograms_that_cannot_be_compared(counts: list, reference: list) -> None:
    with pytest.raises(ValueError, match="histogram"):
        total_variation(counts, reference)


@pytest.mark.parametrize(
    ("counts", "expected"), [([5, 0, 0], 0.0), ([1, 1], log(2)), ([3, 1, 0], 0.5623351446188083)]
)
def test_mode_entropy(counts: list[int], expected: float) -> None:
    """In nats: of one mode, of two alike, of 3/4 and 1/4."""
    assert mode_entropy(torch.tensor(counts)) == pytest.approx(expected, abs=1e-12)


def test_no_entropy_of_nothing() -> None:
    with pytest.raises(ValueError, match="empty"):
        mode_entropy(torch.zeros(3))


def test_mode_counts_keeps_empty_modes() -> None:
    assert mode_counts(torch.tensor([0, 2, 2]), 5).tolist() == [1, 0, 2, 0, 0]


@pytest.mark.parametrize(("groups", "n", "dim"), [(1, 2, 3), (4, 5, 16), (3, 8, 2)])
def test_similarity_is_the_mean_over_pairs(groups: int, n: int, dim: int) -> None:
    features = torch.randn(groups, n, dim, generator=torch.Generator().manual_seed(0))
    pairs = [
        F.cosine_similarity(group[i], group[j], dim=0)
        for group in features.double()
        for i in range(n)
        for j in range(i)
    ]
    expected = torch.stack(pairs).mean().item()
    assert in_batch_similarity(features) == pytest.approx(expected, abs=1e-9)


def test_similarity_of_copies_opposites_and_right_angles() -> None:
    assert in_batch_similarity(torch.ones(2, 4, 3) * 7) == pytest.approx(1)
    assert in_batch_similarity(torch.tensor([[[1.0, 0], [-2, 0]]])) == pytest.approx(-1)
    assert in_batch_similarity(torch.eye(4)[None]) == pytest.approx(0)
    with pytest.raises(ValueError, match="two samples"):
        in_batch_similarity(torch.ones(3, 1, 2))


def test_similarity_of_each_group() -> None:
    features = torch.stack([torch.ones(4, 3), torch.eye(4)[:, :3]])
    found = group_similarities(features)
    assert found[0] == pytest.approx(1)
    assert found.mean().item() == pytest.approx(in_batch_similarity(features))
