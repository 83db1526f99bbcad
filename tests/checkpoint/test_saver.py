"""Saving beside training, what stays of it, and reading it back by other ranks."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stack.checkpoint import commit, read, saver, verify
from stack.checkpoint.commit import Contents, Keep
from stack.checkpoint.saver import Saver
from stack.parallel.collectives import ALONE
from stack.util.errors import UserError
from stack.util.files import sha256_file
from tests.checkpoint.samples import flip, names, save
from tests.pipeline import tree

TIMEOUT = 30


class Gate:
    """Holds saves back until it is opened, and notes what they were given and where they ran."""

    def __init__(self, original: Callable[..., Path]) -> None:
        self.original, self.opened = original, threading.Event()
        self.given: list[Contents] = []
        self.threads: list[threading.Thread] = []

    def save(self, root: Path, step: int, contents: Contents, **options: Any) -> Path:
        self.given.append(contents)
        self.threads.append(threading.current_thread())
        assert self.opened.wait(TIMEOUT)
        return self.original(root, step, contents, **options)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate(commit.save)
    monkeypatch.setattr(saver, "save", gate.save)
    return gate


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Saver]:
    """A saver whose thread ends with the test."""
    made = Saver(tmp_path, ALONE, Keep(9), background=True)
    yield made
    made.close()


def test_what_is_written_is_what_was_when_save_was_called(
    tmp_path: Path, gate: Gate, background: Saver
) -> None:
    """Tensors and the tensors inside objects, which training changes before they are written."""
    tensors = {"a": torch.arange(6.0), "part": torch.arange(12.0).reshape(3, 4)[1:].T}
    objects = {"engine/rank0.pt": {"moments": [torch.ones(3), {"deep": torch.ones(2)}], "n": 7}}
    before = {name: value.clone() for name, value in tensors.items()}
    background.save(3, Contents(tensors, objects))
    assert names(tmp_path) == [], "nothing can be there while the save is held"
    for value in (*tensors.values(), objects["engine/rank0.pt"]["moments"][0]):
        value.fill_(-1)
    objects["engine/rank0.pt"]["moments"][1]["deep"].fill_(-1)
    objects["engine/rank0.pt"]["n"] = 8
    gate.opened.set()
    background.wait()
    folder = tmp_path / "step-0000003"
    found = read.read_tensors(folder, "")
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], value) for name, value in before.items())
    stored = torch.load(folder / "engine" / "rank0.pt")
    assert torch.equal(stored["moments"][0], torch.ones(3))
    assert torch.equal(stored["moments"][1]["deep"], torch.ones(2))
    assert stored["n"] == 7
    listing = json.loads((folder / "COMMIT.json").read_text())["files"]
    assert listing["engine/rank0.pt"]["sha256"] == sha256_file(folder / "engine" / "rank0.pt")
    assert verify.fault(folder) is None
    flip(folder / "engine" / "rank0.pt")
    assert verify.fault(folder) == "engine/rank0.pt does not match its SHA-256"


def test_copies_are_made_in_the_same_buffers(gate: Gate, background: Saver) -> None:
    gate.opened.set()
    tensors, objects = {"a": torch.zeros(5)}, {"o.pt": {"b": torch.zeros(4)}}
    for step in (1, 2):
        background.save(step, Contents(tensors, objects))
    background.wait()
    places = [
        (given.tensors["a"].data_ptr(), given.objects["o.pt"]["b"].data_ptr())
        for given in gate.given
    ]
    assert places[0] == places[1]
    assert places[0] != (tensors["a"].data_ptr(), objects["o.pt"]["b"].data_ptr())


def refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FULL = r"step-0000002: not saved \(.*No space left on device\); older checkpoints are untouched"


@pytest.mark.parametrize("told_by", ["wait", "save"])
def test_a_refused_save_is_told_later(
    tmp_path: Path, background: Saver, monkeypatch: pytest.MonkeyPatch, told_by: str
) -> None:
    """Once, by whatever comes next; the one after that is saved."""
    contents = Contents({"a": torch.ones(2)})
    background.save(1, contents)
    background.wait()
    assert not background.failed
    with monkeypatch.context() as patch:
        patch.setattr(commit, "write_json", refuse)
        background.save(2, contents)
        with pytest.raises(UserError, match=FULL):
            background.wait() if told_by == "wait" else background.save(3, contents)
    assert not background.failed
    background.save(4, contents)
    background.wait()
    assert names(tmp_path) == ["step-0000001", "step-0000004"]


def test_a_refused_save_is_known_before_it_is_told(
    background: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ending the saver hides nothing."""
    monkeypatch.setattr(commit, "write_json", refuse)
    background.save(2, Contents({}))
    background.close()
    assert background.failed
    with pytest.raises(UserError, match=FULL):
        background.wait()


def test_close_waits(tmp_path: Path, gate: Gate, background: Saver) -> None:
    background.save(1, Contents({}))
    closing = threading.Thread(target=background.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive(), "closed while a save was under way"
    gate.opened.set()
    closing.join(TIMEOUT)
    assert names(tmp_path) == ["step-0000001"]


def test_without_background_save_returns_when_committed(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the caller's thread, of the tensors themselves, and a refusal is raised at once."""
    gate.opened.set()
    foreground = Saver(tmp_path, ALONE, Keep(9), background=False)
    tensors = {"a": torch.ones(2)}
    foreground.save(1, Contents(tensors))
    assert names(tmp_path) == ["step-0000001"]
    assert gate.threads == [threading.current_thread()]
    assert gate.given[0].tensors["a"] is tensors["a"]
    monkeypatch.setattr(commit, "write_json", refuse)
    with pytest.raises(UserError, match=FULL):
        foreground.save(2, Contents(tensors))
    foreground.close()


SUPERFLUOUS = [
    # what stays of six, scores by step, steps with a damaged COMMIT.json, steps that may go
    (Keep(2), {}, [], [1, 2, 3, 4]),
    (Keep(1), {}, [], [1, 2, 3, 4, 5]),
    (Keep(9), {}, [], []),
    (Keep(2, every=3), {}, [], [1, 2, 4]),
    (Keep(1, every=2), {}, [], [1, 3, 5]),
    (Keep(2), {1: 0.5}, [], [1, 2, 3, 4]),
    (Keep(1, best=1), {1: 5.0, 2: 1.0, 4: 3.0}, [], [1, 3, 4, 5]),
    (Keep(1, best=2), {1: 5.0, 2: 1.0, 4: 3.0}, [], [1, 3, 5]),
    (Keep(1, best=9), {1: 5.0, 2: 1.0, 4: 3.0}, [], [3, 5]),
    (Keep(1, best=1), {1: 5.0, 6: 1.0}, [], [1, 2, 3, 4, 5]),
    (Keep(1, best=1), {1: 5.0, 2: 1.0, 4: 3.0}, [2], [1, 2, 3, 5]),
    (Keep(2, every=4, best=1), {1: 0.0}, [3, 4], [2, 3]),
    (Keep(1, best=1), {1: nan, 2: 1.0, 4: 3.0}, [], [1, 3, 4, 5]),
    (Keep(1, best=1), {1: 3.0, 2: nan, 4: 1.0}, [], [1, 2, 3, 5]),
]


@pytest.mark.parametrize(("keep", "scores", "damaged", "gone"), SUPERFLUOUS, ids=str)
def test_superfluous(
    tmp_path: Path, keep: Keep, scores: dict[int, float], damaged: list[int], gone: list[int]
) -> None:
    """A score that is no number is nobody's best."""
    for step in range(1, 7):
        folder = commit.step_folder(tmp_path, step)
        folder.mkdir()
        mark = {"step": step, "files": {}}
        mark |= {"score": scores[step]} if step in scores else {}
        (folder / "COMMIT.json").write_text("{" if step in damaged else json.dumps(mark))
    found = commit.superfluous(commit.committed(tmp_path), keep)
    assert [commit.step_of(folder) for folder in found] == gone


def test_the_best_outlives_later_saves(tmp_path: Path) -> None:
    rows = [(1, 4.0, {1}), (2, 1.0, {1, 2}), (3, 2.0, {2, 3}), (4, None, {2, 3, 4})]
    rows += [(5, 3.0, {2, 4, 5}), (6, 0.5, {5, 6}), (7, 9.0, {6, 7}), (8, 9.0, {6, 7, 8})]
    for step, score, left in rows:
        save(tmp_path, step, keep=Keep(2, best=1), score=score)
        assert {commit.step_of(folder) for folder in commit.committed(tmp_path)} == left


def test_set_aside(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    before = tree(tmp_path)
    aside = commit.set_aside(tmp_path, 4)
    assert aside
    assert aside.parent == tmp_path
    assert names(aside) == ["step-0000006", "step-0000008"]
    assert names(tmp_path) == [aside.name, "step-0000002", "step-0000004"]
    assert [commit.step_of(folder) for folder in commit.committed(tmp_path)] == [2, 4]
    assert verify.latest(tmp_path) == (tmp_path / "step-0000004", [])
    assert {name.removeprefix(f"{aside.name}/"): file for name, file in tree(tmp_path).items()} == (
        before
    ), "moved, and nothing else"
    assert commit.set_aside(tmp_path, 4) is None
    commit.sweep(tmp_path)
    assert aside.is_dir()


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

            return verify.fault(folder, rank=rank, world_size=count, gather=gather)

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
