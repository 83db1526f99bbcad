"""Checkpoints read by other ranks than those that wrote them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stack.checkpoint import folders, read, verify
from stack.checkpoint.commit import Keep
from stack.util.errors import UserError
from stack.util.files import sha256_file
from tests.checkpoint.samples import flip, names, save
from tests.pipeline import tree

TIMEOUT = 30


def test_the_best_outlives_later_saves(tmp_path: Path) -> None:
    rows = [(1, 4.0, {1}), (2, 1.0, {1, 2}), (3, 2.0, {2, 3}), (4, None, {2, 3, 4})]
    rows += [(5, 3.0, {2, 4, 5}), (6, 0.5, {5, 6}), (7, 9.0, {6, 7}), (8, 9.0, {6, 7, 8})]
    for step, score, left in rows:
        save(tmp_path, step, keep=Keep(2, best=1), score=score)
        assert {folders.step_of(folder) for folder in folders.committed(tmp_path)} == left


def test_set_aside(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    before = tree(tmp_path)
    aside = folders.set_aside(tmp_path, 4)
    assert aside
    assert aside.parent == tmp_path
    assert names(aside) == ["step-0000006", "step-0000008"]
    assert names(tmp_path) == [aside.name, "step-0000002", "step-0000004"]
    assert [folders.step_of(folder) for folder in folders.committed(tmp_path)] == [2, 4]
    assert verify.latest(tmp_path) == (tmp_path / "step-0000004", [])
    assert {name.removeprefix(f"{aside.name}/"): file for name, file in tree(tmp_path).items()} == (
        before
    ), "moved, and nothing else"
    assert folders.set_aside(tmp_path, 4) is None
    folders.sweep(tmp_path)
    assert aside.is_dir()


@dataclass(frozen=True)
class Ranks:
    """One of the threads, as its peers see it."""

    rank: int
    world_size: int
    gather: Callable[[Any], list[Any]]
    group: None = None


class Together:
    """Ranks that are threads."""

    def __init__(self, world_size: int) -> None:
        self.values: list[Any] = [None] * world_size
        self.barrier = threading.Barrier(world_size, timeout=TIMEOUT)

    def fault(self, folder: Path) -> list[str | None]:
        """What each rank is told of a checkpoint."""
        count = len(self.values)

        def one(rank: int) -> str | None:
            def gather(value: Any) -> list[Any]:
                self.values[rank] = value
                self.barrier.wait()
                return list(self.values)

            return verify.fault(folder, Ranks(rank, count, gather))

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(one, range(count)))


FILES = ("__0_0.distcp", ".metadata", "state.json", "recipe.yaml")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_every_rank_is_told_of_the_fault_that_one_found(
    tmp_path: Path, file: str, world_size: int
) -> None:
    folder = save(tmp_path, 1)
    assert Together(world_size).fault(folder) == [None] * world_size
    flip(folder / file)
    reason = f"{file} does not match its SHA-256"
    assert Together(world_size).fault(folder) == [reason] * world_size


def test_ranks_share_the_hashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, hashed = save(tmp_path, 1), []

    def count(file: Path) -> str:
        hashed.append(file.name)
        return sha256_file(file)

    monkeypatch.setattr(verify, "sha256_file", count)
    assert Together(2).fault(folder) == [None, None]
    assert sorted(hashed) == sorted(FILES)


WHOLE = torch.arange(12.0) + 1
CUTS = ([12], [5, 7], [7, 5], [1, 1, 10], [4, 4, 4], [12, 0], [3, 0, 9])


def stretches(lengths: list[int]) -> dict[str, Tensor]:
    """WHOLE as ranks of these lengths hold it."""
    parts = WHOLE.split(lengths)
    starts = [sum(lengths[:rank]) for rank in range(len(lengths))]
    return {f"w@{start}": part.clone() for start, part in zip(starts, parts, strict=True)}


@pytest.mark.parametrize("now", CUTS, ids=str)
@pytest.mark.parametrize("then", [[12], [5, 7], [2, 3, 7]], ids=str)
def test_stretches_are_read_at_another_cut(tmp_path: Path, then: list[int], now: list[int]) -> None:
    """By every rank for itself; and whole by who wants the tensor."""
    folder = save(tmp_path, 1, {**stretches(then), "b": torch.ones(2)})
    for name, part in stretches(now).items():
        wanted = {name: torch.zeros(len(part)), "b": torch.zeros(2)}
        read.load_into(folder, wanted)
        assert torch.equal(wanted[name], part)
    assert torch.equal(read.read_tensors(folder, "")["w"], WHOLE)


B = torch.zeros(2)
MISFITS: list[tuple[str, dict[str, Tensor], str]] = [
    ("a hole", {"w@4": torch.zeros(3), "b": B}, r"w@4: 1 of 3 elements are in the checkpoint"),
    ("beyond", {"w@10": torch.zeros(3), "b": B}, r"w: the checkpoint has .*\(12,\).*\(13,\)"),
    ("dtype", {"w@0": torch.zeros(5).bfloat16(), "b": B}, r"w: the checkpoint has .*bfloat16"),
    ("left over", {"w@0": torch.zeros(5)}, r"b: the checkpoint has .*the run nothing"),
    ("missing", {"w@0": torch.zeros(5), "b": B, "v@0": B}, r"v: the checkpoint has nothing"),
]


@pytest.mark.parametrize(("what", "wanted", "message"), MISFITS, ids=[row[0] for row in MISFITS])
def test_stretches_that_do_not_fit_are_refused(
    tmp_path: Path, what: str, wanted: dict[str, Tensor], message: str
) -> None:
    saved = stretches([5, 3, 4])
    del saved["w@5"]
    folder = save(tmp_path, 1, saved | {"b": torch.ones(2)})
    with pytest.raises(UserError, match=message):
        read.load_into(folder, wanted)


def test_generators_of_other_ranks_are_left(tmp_path: Path) -> None:
    """A rank that is new keeps its own."""
    saved = {f"rng.rank{rank}.cpu": torch.full((3,), rank + 1) for rank in range(3)}
    folder = save(tmp_path, 1, {**saved, "b": torch.ones(2)})
    wanted = {"rng.rank1.cpu": torch.zeros(3).long(), "rng.rank7.cpu": torch.full((3,), 70)}
    read.load_into(folder, wanted | {"b": (b := torch.zeros(2))})
    assert wanted["rng.rank1.cpu"].tolist() == [2, 2, 2]
    assert wanted["rng.rank7.cpu"].tolist() == [70, 70, 70]
    assert b.tolist() == [1, 1]
