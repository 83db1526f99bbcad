"""Where an iteration's micro-batches come from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stack.data.batch import BatchLoader
from stack.data.stream import ShardStream
from stack.fdistill.algorithm import Batch
from stack.nets.text import TextEncoder, load_text
from stack.train.sources import KeyedSource, LatentSource, RawSource, micro_batches
from tests.data.damage import ruin
from tests.pipeline import World, caption, copy


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_micro_batches_are_the_batch_in_order(count: int) -> None:
    positions = torch.arange(8)
    batch = Batch(positions, torch.randn(8, 4, 2, 2), torch.randn(8, 3), torch.randn(8, 3))
    parts = micro_batches(batch, count)
    assert [len(part.positions) for part in parts] == [8 // count] * count
    for name in ("positions", "x0", "c", "null"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(batch, name))


def stream(world: World) -> ShardStream:
    return ShardStream([world.data], global_batch=8, lanes=8, seed=0, window=16)


def source(world: World, text: TextEncoder, accumulation: int = 1) -> LatentSource:
    loader = BatchLoader(stream(world), ("latent", "tokens"))
    return LatentSource(
        loader,
        text,
        scale=0.75,
        samples=8,
        accumulation=accumulation,
        device=torch.device("cpu"),
    )


def test_latents_are_scaled_and_captions_encoded(world: World) -> None:
    text = load_text(world.teacher)
    [batch] = source(world, text).take()
    raw = next(iter(BatchLoader(stream(world), ("latent", "text", "key"))))
    assert torch.equal(batch.x0, raw["latent"].float() * 0.75)
    assert batch.x0.dtype is torch.float32
    with torch.no_grad():
        assert torch.equal(batch.c, text(text.tokenize(raw["text"])[0]))
        assert torch.equal(batch.null, text(text.tokenize([""])[0]).expand_as(batch.c))
    assert torch.equal(batch.positions, raw["position"])
    assert raw["text"] == [caption(int(key)) for key in raw["key"]]
    assert not batch.c.requires_grad


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_source_goes_on_where_another_stood(world: World, accumulation: int) -> None:
    text = load_text(world.teacher)
    first, second = source(world, text, accumulation), source(world, text, accumulation)
    for _ in range(7):  # more than an epoch of 52 // 8 steps
        first.take()
    state = json.loads(json.dumps(first.state_dict()))
    assert (state["epoch"], state["step"]) == (1, 1)
    second.take()
    second.load_state_dict(state)
    for one, other in zip(first.take(), second.take(), strict=True):
        assert torch.equal(one.x0, other.x0)
        assert torch.equal(one.positions, other.positions)


def test_raw_batches(world: World) -> None:
    raw = RawSource(BatchLoader(stream(world), ("image", "key")), samples=8)
    [batch] = raw.take()
    assert batch["image"].dtype is torch.uint8
    state = raw.state_dict()
    [expected] = raw.take()
    raw.load_state_dict(state)
    [again] = raw.take()
    assert again["key"] == expected["key"]


def test_damage_is_kept_for_the_trainer_and_handed_out_once(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = copy(world.data, tmp_path / "data")
    ruin(data, "000000")
    made = ShardStream(data, global_batch=8, lanes=8, seed=0, window=16)
    raw = RawSource(BatchLoader(made, ("latent",)), samples=8)
    assert raw.damage() == []
    counts = [0]
    for _ in range(6):
        raw.take()
        counts.append(raw.counts()["bad_samples"])
        lines = raw.damage()
        assert len(lines) == counts[-1] - counts[-2]
        assert all(line.startswith(f"{data}/000000.tar: 0000") for line in lines)
        assert raw.damage() == []
    assert counts[-1] > 1
    assert caplog.messages == []


def test_keyed_samples() -> None:
    def draw(iteration: int, positions: Tensor) -> Tensor:
        return torch.stack([torch.full((len(positions),), float(iteration)), positions.float()], 1)

    keyed = KeyedSource(draw, samples=8, positions=torch.arange(4, 8), accumulation=2)
    assert keyed.samples == 8
    keyed.take()
    parts = keyed.take()
    assert np.array_equal(torch.cat([part.x0 for part in parts]), [[1, 4], [1, 5], [1, 6], [1, 7]])
    assert all(part.c.shape == (2, 0) for part in parts)
    keyed.load_state_dict({"iteration": 5})
    assert keyed.take()[0].x0[0, 0] == 5
    assert keyed.state_dict() == {"iteration": 6}
