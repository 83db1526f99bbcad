"""Saving: what stays, what goes, and that a save cut short harms nothing."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from stack.checkpoint import commit, folders, verify
from stack.checkpoint.commit import Contents, Keep
from stack.parallel.collectives import ALONE
from stack.util.errors import UserError
from tests.checkpoint.samples import flip, names, save
from tests.pipeline import tree


def test_retention(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, keep=3)
    assert names(tmp_path) == ["step-0000003", "step-0000004", "step-0000005"]


def test_retention_does_not_count_what_a_resume_passed_over(tmp_path: Path) -> None:
    """The newest two are damaged, the run goes on from before them: what it saves must stay."""
    for step in (10, 20, 30):
        save(tmp_path, step, keep=3)
    for step in (20, 30):
        flip(folders.step_folder(tmp_path, step) / "state.json")
    assert verify.latest(tmp_path)[0] == folders.step_folder(tmp_path, 10)
    saved = save(tmp_path, 15, keep=2)
    assert verify.latest(tmp_path)[0] == saved
    assert folders.step_folder(tmp_path, 10).exists()


def test_the_same_step_again_replaces_a_damaged_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    flip(save(tmp_path, 2) / "state.json")
    assert verify.latest(tmp_path)[0] == folders.step_folder(tmp_path, 1)
    assert verify.latest(tmp_path)[0] != save(tmp_path, 2)
    assert verify.latest(tmp_path)[0] == folders.step_folder(tmp_path, 2)
    assert names(tmp_path) == ["step-0000001", "step-0000002"]


def test_sorted_by_number_of_steps(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step)
    assert [path.name for path in folders.committed(tmp_path)] == [
        "step-0000009",
        "step-0000020",
        "step-0000100",
    ]


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def rename(source: Path, target: Path) -> None:
    """Dies at the commit; the library renames files of its own."""
    die() if Path(target).name.startswith("step-") else os.replace(source, target)


MOMENTS = {
    "before the commit": (commit, "fsync", die, "state.json"),
    "before the rename": (commit.os, "rename", rename, "COMMIT.json"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_save_leaves_staging_only(tmp_path: Path, moment: str) -> None:
    module, name, replacement, last = MOMENTS[moment]
    before = tree(save(tmp_path, 1))
    child = os.fork()
    if not child:
        signal.alarm(30)
        setattr(module, name, replacement)
        save(tmp_path, 2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    [staging, step] = names(tmp_path)
    assert (staging[:11], step) == (".staging-2-", "step-0000001")
    assert (tmp_path / staging / last).exists()
    assert verify.latest(tmp_path) == (tmp_path / "step-0000001", [])
    folders.sweep(tmp_path)
    assert names(tmp_path) == ["step-0000001"]
    assert tree(tmp_path / "step-0000001") == before


def test_sweep_finishes_a_removal(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".trash-step-0000000-x").mkdir()
    folders.sweep(tmp_path)
    assert names(tmp_path) == ["step-0000001"]
    folders.sweep(tmp_path / "nowhere")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond ``size`` bytes: a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 60_000])
def test_a_full_disk_leaves_older_checkpoints(tmp_path: Path, size: int) -> None:
    save(tmp_path, 1, keep=2)
    save(tmp_path, 2, keep=2)
    before = tree(tmp_path)
    with (
        file_size_limit(size),
        pytest.raises(UserError, match=r"step-0000003: not saved \(.*older"),
    ):
        save(tmp_path, 3, keep=2)
    assert tree(tmp_path) == before
    assert names(tmp_path) == ["step-0000001", "step-0000002"]
    assert verify.latest(save(tmp_path, 3).parent)[0] == tmp_path / "step-0000003"


def test_a_full_disk_under_files_of_another_library(tmp_path: Path) -> None:
    """torch.save calls that a RuntimeError."""
    save(tmp_path, 1)
    objects = {"student/rank0.pt": torch.zeros(100_000)}
    with file_size_limit(60_000), pytest.raises(UserError, match=r"not saved \(.*rank0\.pt"):
        commit.save(tmp_path, 2, Contents({}, objects), peers=ALONE, keep=Keep(2))
    assert names(tmp_path) == ["step-0000001"]


def test_what_cannot_be_removed_does_not_spoil_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    save(tmp_path, 1, keep=2)
    save(tmp_path, 2, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(commit.shutil, "rmtree", refuse)
        save(tmp_path, 3, keep=2)
    assert "not removed (Directory not empty)" in caplog.text
    assert verify.latest(tmp_path) == (tmp_path / "step-0000003", [])
    folders.sweep(tmp_path)
    assert names(tmp_path) == ["step-0000002", "step-0000003"]


def test_folders_of_other_names_are_none_of_ours(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, keep=2)
    copy = shutil.copytree(tmp_path / "step-0000002", tmp_path / "step-0000002.bak")
    save(tmp_path, 3, keep=Keep(2, every=5))
    assert names(tmp_path) == ["step-0000002", "step-0000002.bak", "step-0000003"]
    assert not folders.is_step(Path(copy))


REFUSALS = {
    "a rename": (commit.os, "rename"),
    "a small file": (commit, "write_json"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refused_step_leaves_older_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(tmp_path, 1)
    save(tmp_path, 2)
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(*REFUSALS[what], refuse)
        with pytest.raises(UserError, match=r"not saved \(.*No space left on device"):
            save(tmp_path, 2)
    assert tree(tmp_path) == before
    assert names(tmp_path) == ["step-0000001", "step-0000002"]


def test_a_refused_commit_leaves_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is moved out of the way before, and comes back."""

    def refuse(source: Path, target: Path) -> None:
        if Path(source).name.startswith(".staging-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.replace(source, target)

    before = tree(save(tmp_path, 1))
    with monkeypatch.context() as patch:
        patch.setattr(commit.os, "rename", refuse)
        with pytest.raises(UserError, match=r"not saved \(.*No space left on device"):
            save(tmp_path, 1)
    assert names(tmp_path) == ["step-0000001"]
    assert tree(tmp_path / "step-0000001") == before


def test_a_bug_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        commit.save(tmp_path, 1, Contents({}, {}, {"x": object()}), peers=ALONE, keep=commit.Keep())
    assert names(tmp_path) == []
