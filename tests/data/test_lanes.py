"""The order of samples: exact within an epoch, the same for every world size, in closed form."""

from __future__ import annotations

import hashlib
from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.data.lanes import CanonicalLanes, share_lanes
from stack.util.errors import UserError


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


@st.composite
def layouts(draw: st.DrawFn) -> dict:
    """Shard sizes, lanes, samples a lane gives per step, a world size and a window."""
    lanes = draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
    sizes = draw(st.lists(st.integers(1, 25), min_size=1, max_size=8))
    per_lane = draw(st.integers(1, 4))
    short = lanes * per_lane - sum(sizes)
    return {
        "sizes": [*sizes, short] if short > 0 else sizes,
        "global_batch": lanes * per_lane,
        "lanes": lanes,
        "window": draw(st.integers(1, 40)),
        "seed": draw(st.integers(0, 2**63)),
        "world_size": draw(st.sampled_from(divisors(lanes))),
    }


def order(sizes: list[int], **options) -> CanonicalLanes:
    return CanonicalLanes([sizes], **options)


def numbers(lanes: CanonicalLanes, step: int, sizes: list[int]) -> list[int]:
    """The samples of a step as numbers through the whole dataset."""
    shard, row = lanes.locate(step)
    assert (row >= 0).all()
    assert (row < np.array(sizes)[shard]).all()
    return (np.cumsum([0, *sizes])[shard] + row).tolist()


@settings(max_examples=60)
@given(layouts(), st.integers(0, 40))
def test_an_epoch_holds_every_sample_once_but_the_rotating_remainder(layout, epoch):
    sizes, world = layout["sizes"], layout.pop("world_size")
    lanes = order(**layout)
    steps = range(epoch * lanes.steps_per_epoch, (epoch + 1) * lanes.steps_per_epoch)
    seen = [number for step in steps for number in numbers(lanes, step, sizes)]
    total, left = sum(sizes), sum(sizes) % layout["global_batch"]
    assert len(seen) == len(set(seen)) == total - left
    skipped = {(epoch * left + i) % total for i in range(left)}
    assert set(range(total)) - set(seen) == skipped
    ranks = [order(**layout, rank=rank, world_size=world) for rank in range(world)]
    for step in steps:
        parts = [number for rank in ranks for number in numbers(rank, step, sizes)]
        assert parts == numbers(lanes, step, sizes)
    assert np.concatenate([rank.positions for rank in ranks]).tolist() == list(
        range(layout["global_batch"])
    )


@pytest.mark.parametrize(("total", "batch"), [(10, 4), (11, 4), (12, 4), (30, 21)])
def test_every_sample_is_left_out_equally_often(total, batch):
    lanes = order([total], global_batch=batch, lanes=1, window=5, seed=1)
    left = total % batch
    epochs = total // gcd(total, left)
    seen = np.zeros(total, int)
    for step in range(epochs * lanes.steps_per_epoch):
        seen[numbers(lanes, step, [total])] += 1
    assert (seen == epochs * (total - left) // total).all()


@pytest.mark.parametrize("change", [{"seed": 4}, {"window": 9}, {"lanes": 2}])
def test_what_the_order_depends_on(change):
    options = {"global_batch": 8, "lanes": 4, "window": 16, "seed": 3}
    one, other = order([50, 50], **options), order([50, 50], **{**options, **change})
    assert numbers(one, 0, [50, 50]) != numbers(other, 0, [50, 50])
    epochs = [numbers(one, epoch * one.steps_per_epoch, [50, 50]) for epoch in range(20)]
    assert len({tuple(first) for first in epochs}) == 20


def test_asking_in_any_order_gives_the_same():
    options = {"global_batch": 12, "lanes": 6, "window": 7, "seed": 3}
    walked = order([40, 41], **options)
    steps = [numbers(walked, step, [40, 41]) for step in range(60)]
    for step in (59, 0, 31, 5, 6, 12):
        assert numbers(order([40, 41], **options), step, [40, 41]) == steps[step]
        assert numbers(walked, step, [40, 41]) == steps[step]


def test_the_order_is_fixed_for_good():
    """A changed digest means that no saved place can be resumed exactly any more."""
    lanes = CanonicalLanes(
        [[100, 30, 77], [64]], global_batch=24, lanes=12, seed=5, window=16, weights=[3, 1]
    )
    digest = hashlib.sha256()
    for step in (0, 1, 8, 9, 100, 10**6, 10**12):
        for part in lanes.locate(step):
            digest.update(part.astype("<i8").tobytes())
    assert digest.hexdigest() == (
        "bce845da7bcc1b22a8fa11ee618c6671b1635942f8565fc7a1f0be4c4a82e841"
    )


@settings(max_examples=60)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.integers(120, 400))
def test_a_mixture_shares_lanes_by_weight(weights, lanes):
    owner = share_lanes(lanes, weights, list(map(str, weights)))
    share = np.array(weights) / sum(weights)
    given_lanes = np.bincount(owner, minlength=len(weights))
    assert abs(given_lanes - share * lanes).max() <= len(weights) / 2
    for part in np.array_split(owner, 4):
        spread = np.bincount(part, minlength=len(weights)) - share * len(part)
        assert abs(spread).max() <= len(weights)


def test_each_source_of_a_mixture_runs_through_its_own_epochs():
    sizes = [[30, 10], [16]]
    options = {"global_batch": 8, "lanes": 8, "seed": 1, "window": 8, "weights": [3, 1]}
    ranks = [CanonicalLanes(sizes, **options, rank=rank, world_size=4) for rank in range(4)]
    seen: list[list[tuple[int, int]]] = [[], []]
    for step in range(48):
        for rank in ranks:
            for place in zip(*map(np.ndarray.tolist, rank.locate(step)), strict=True):
                seen[place[0] >= 2].append(place)
    # 6 of 8 lanes: 36 of 40 samples an epoch. 2 of 8: all 16 in 8 steps.
    assert [len(places) for places in seen] == [48 * 6, 48 * 2]
    for places, epoch in zip(seen, (36, 16), strict=True):
        for start in range(0, len(places), epoch):
            assert len(set(places[start : start + epoch])) == epoch


ILLEGAL = [
    ({"lanes": 5}, "lanes: 5 does not divide global_batch 12; legal: 1, 2, 3, 4, 6, 12"),
    ({"lanes": 0}, "lanes: 0 does not divide"),
    ({"world_size": 4}, "world_size: 4 does not divide lanes 6; legal: 1, 2, 3, 6"),
    ({"window": 0}, "window: must be at least 1"),
    ({"global_batch": 120}, "data.global_batch: source 0 has 100 samples, fewer than"),
    ({"weights": [0.0]}, "data.weights: source 0: must be positive and finite (0)"),
    ({"weights": [float("nan")]}, "data.weights: source 0: must be positive and finite (nan)"),
]


@pytest.mark.parametrize(("change", "message"), ILLEGAL)
def test_illegal_settings_name_the_legal_ones(change, message):
    options = {"global_batch": 12, "lanes": 6, "seed": 0, "window": 8, **change}
    with pytest.raises(UserError) as caught:
        CanonicalLanes([[60, 40]], **options)
    assert str(caught.value).startswith(message)


def test_a_source_without_a_lane_is_refused():
    with pytest.raises(UserError, match=r"^data.weights: small: 0\.01 gets none of 4 lanes"):
        share_lanes(4, [1.0, 0.01], ["large", "small"])
