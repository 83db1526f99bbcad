"""Saving beside training, what stays of it, and reading it back by other ranks."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch

from stack.checkpoint import commit, folders, read, saver, verify
from stack.checkpoint.commit import Contents, Keep
from stack.checkpoint.saver import Saver
from stack.parallel.collectives import ALONE
from stack.util.errors import UserError
from stack.util.files import sha256_file
from tests.checkpoint.samples import flip, names

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
        folder = folders.step_folder(tmp_path, step)
        folder.mkdir()
        mark = {"step": step, "files": {}}
        mark |= {"score": scores[step]} if step in scores else {}
        (folder / "COMMIT.json").write_text("{" if step in damaged else json.dumps(mark))
    found = commit.superfluous(folders.committed(tmp_path), keep)
    assert [folders.step_of(folder) for folder in found] == gone
