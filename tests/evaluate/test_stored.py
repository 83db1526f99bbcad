"""Blocks of results: the same on any number of ranks, kept, and never half there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stack.evaluate.stored import BlockStore, blocks_of_rank, digest_of
from stack.util.errors import UserError

FACTS = {"weights": "abc", "seed": 0, "prompts": "def"}


def squares(block: range) -> dict[str, Tensor]:
    places = torch.tensor(list(block)).float()
    return {"squares": places[:, None] ** 2, "places": places.long()}


@pytest.mark.parametrize("count", [1, 31, 32, 33, 200, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [32, 500])
def test_ranks_share_whole_blocks(count: int, world_size: int, size: int) -> None:
    owned = [blocks_of_rank(count, size, rank, world_size) for rank in range(world_size)]
    found = sorted((block for blocks in owned for block in blocks), key=lambda block: block.start)
    assert found == blocks_of_rank(count, size, 0, 1)
    assert [place for block in found for place in block] == list(range(count))
    assert all(block.start % size == 0 and len(block) <= size for block in found)
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_results_are_the_same_bytes_on_any_number_of_ranks(tmp_path: Path, world_size: int) -> None:
    for rank in range(world_size):
        store = BlockStore(tmp_path / "many", FACTS, 150, 32)
        store.run(squares, rank=rank, world_size=world_size)
    alone = BlockStore(tmp_path / "one", FACTS, 150, 32)
    alone.run(squares)
    names = sorted(file.name for file in alone.folder.iterdir())
    assert len(names) == 5 + 1
    for name in names:
        assert (store.folder / name).read_bytes() == (alone.folder / name).read_bytes()
    found = store.read()
    assert torch.equal(found["places"], torch.arange(150))
    assert torch.equal(found["squares"][:, 0], torch.arange(150).float() ** 2)


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    made: list[range] = []

    def dies(block: range) -> dict[str, Tensor]:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(block)
        return squares(block)

    store = BlockStore(tmp_path, FACTS, 150, 32)
    with pytest.raises(KeyboardInterrupt):
        store.run(dies)
    assert len(store.missing()) == 3
    with pytest.raises(UserError, match="3 blocks missing"):
        store.read()
    again: list[range] = []
    told: list[range] = []

    def counted(block: range) -> dict[str, Tensor]:
        again.append(block)
        return squares(block)

    BlockStore(tmp_path, dict(reversed(FACTS.items())), 150, 32).run(counted, on_block=told.append)
    assert again == blocks_of_rank(150, 32, 0, 1)[2:]
    assert told == blocks_of_rank(150, 32, 0, 1)
    assert not store.missing()


@pytest.mark.parametrize("change", [{"weights": "abd"}, {"seed": 1}, {"sampler": "SDE"}])
def test_anything_else_is_another_evaluation(tmp_path: Path, change: dict) -> None:
    BlockStore(tmp_path, FACTS, 10, 32).run(squares)
    other = BlockStore(tmp_path, FACTS | change, 10, 32)
    assert other.missing()
    other.run(squares)
    told = json.loads((other.folder / "facts.json").read_text())
    assert told == FACTS | change | {"block": 32}
    assert BlockStore(tmp_path, FACTS, 10, 500).missing()
    assert len(list(tmp_path.iterdir())) == 2
    assert digest_of(FACTS) != digest_of(FACTS | change)


def test_a_damaged_block_is_told(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, FACTS, 40, 32)
    store.run(squares)
    file = store.folder / "0000032.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=r"0000032.safetensors: damaged .* delete it"):
        store.read()
