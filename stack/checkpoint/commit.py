"""Writing a checkpoint: staged by all ranks, hashed, committed by one rename.

    checkpoints/.staging-<step>-<id>/   tensors (torch.distributed.checkpoint), other files,
                                        state.json, recipe.yaml; last COMMIT.json with the size
                                        and SHA-256 of each
    checkpoints/step-0000500/           the same folder, renamed

A folder named step-* was complete when it was renamed; whether it still is, verify.py tells.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from stack.checkpoint.folders import COMMIT, committed, mark, step_folder, step_of, trash
from stack.util.errors import UserError
from stack.util.files import disk_errors, fsync, sha256_file, write_atomic, write_json

logger = logging.getLogger(__name__)


Listing = dict[str, dict[str, Any]]
"""Size and SHA-256 of files, by path in the folder."""


class Peers(Protocol):
    """The ranks that save together."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def group(self) -> dist.ProcessGroup | None: ...
    def gather(self, value: Any) -> list[Any]: ...


@dataclass(frozen=True)
class _Alone:
    """One process, as its own peer."""

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None

    def gather(self, value: Any) -> list[Any]:
        return [value]


ALONE = _Alone()


@dataclass(frozen=True)
class Contents:
    """What this rank puts into a checkpoint.

    Args:
        tensors: by name; the same name on several ranks is one tensor (a DTensor's parts, or
            copies that are equal), so what differs by rank has the rank in its name.
        objects: by path; written with torch.save.
        state: everything else, as JSON; the first rank's counts.
        recipe: the resolved recipe.
        mark: what COMMIT.json says of it besides its files; a "score" is better if lower.
    """

    tensors: Mapping[str, Tensor]
    objects: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = ""
    mark: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay.

    Args:
        last: newest ones. every: those of its multiples, 0 for none. best: those with the lowest
            score.
    """

    last: int = 2
    every: int = 0
    best: int = 0


def save(root: Path, step: int, contents: Contents, *, peers: Peers, keep: Keep) -> Path:
    """Write and commit a checkpoint, then remove older ones; all ranks call it together.

    Args:
        root: the run's checkpoints/ folder, which all ranks see.

    Raises:
        UserError: a disk refused; older checkpoints are untouched. On all ranks alike.
    """
    name = f".staging-{step}-{uuid.uuid4().hex[:8]}"
    staging, final = root / peers.gather(name)[0], step_folder(root, step)

    def commit(listings: list[Listing]) -> Listing:
        if peers.rank == 0:
            _commit(staging, final, {**contents.mark, "step": step}, listings)
        return {}

    def prepare() -> Listing:
        staging.mkdir(parents=True, exist_ok=True)
        return {}

    try:
        _together(peers, prepare)
        listings = _together(peers, lambda: _write(staging, contents, peers))
        _together(peers, lambda: commit(listings))
    except BaseException as error:
        if peers.rank == 0:
            shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, _RefusedError):
            text = f"{final}: not saved ({error}); older checkpoints are untouched"
            raise UserError(text) from error
        raise
    if peers.rank == 0:
        _drop([path for path in committed(root) if path <= final], keep)
    return final


def _drop(folders: list[Path], keep: Keep) -> None:
    """Remove those that need not be kept. What cannot be removed does no harm: the next start
    sweeps it."""
    try:
        for old in superfluous(folders, keep):
            trash(old)
    except OSError as error:
        logger.warning("%s: not removed (%s)", error.filename, error.strerror)


def superfluous(folders: list[Path], keep: Keep) -> list[Path]:
    """Those of some committed checkpoints, oldest first, that need not be kept."""
    kept = set(folders[-keep.last :])
    if keep.every:
        kept |= {path for path in folders if step_of(path) % keep.every == 0}
    if keep.best:
        scores = [(mark(path).get("score", nan), path) for path in folders]
        rated = [(score, path) for score, path in scores if isfinite(score)]
        kept |= {path for _, path in sorted(rated)[: keep.best]}
    return [path for path in folders if path not in kept]


def _write(staging: Path, contents: Contents, peers: Peers) -> Listing:
    """This rank's files, all on the disk, and their hashes."""
    alone = peers.world_size == 1
    dcp.save(
        dict(contents.tensors), checkpoint_id=staging, process_group=peers.group, no_dist=alone
    )
    own = sorted(path.name for path in staging.glob(f"__{peers.rank}_*.distcp"))
    for name, value in contents.objects.items():
        file = staging / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(file):
            torch.save(value, file)
        fsync(file)
        own.append(name)
    if peers.rank == 0:
        write_json(staging / "state.json", dict(contents.state))
        write_atomic(staging / "recipe.yaml", contents.recipe)
        own += [".metadata", "state.json", "recipe.yaml"]
    files = {name: staging / name for name in own}
    return {
        name: {"size": file.stat().st_size, "sha256": sha256_file(file)}
        for name, file in files.items()
    }


def _commit(staging: Path, final: Path, mark: Mapping[str, Any], listings: list[Listing]) -> None:
    files = {name: entry for listing in listings for name, entry in sorted(listing.items())}
    for name in files:
        if not (staging / name).is_file():
            raise OSError(f"{name} of another rank is missing; all ranks must see this folder")
    for folder in {(staging / name).parent for name in files}:
        fsync(folder)
    write_json(staging / COMMIT, {**mark, "files": files})
    old = final.with_name(f".trash-{final.name}-{uuid.uuid4().hex[:8]}")
    if final.exists():
        os.rename(final, old)
    try:
        os.rename(staging, final)
    except OSError:
        if old.exists():
            os.rename(old, final)
        raise
    fsync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


class _RefusedError(Exception):
    """A disk of some rank refused."""


def _together(peers: Peers, action: Callable[[], Listing]) -> list[Listing]:
    """What every rank's action returned; where one fails, all fail."""
    outcome: Listing = {}
    failure: BaseException | None = None
    try:
        outcome = action()
    except (Exception, CheckpointException) as error:  # The latter is none of the former.
        failure = error
    told = _refusal(failure) if failure else None
    rows = peers.gather((outcome, told, failure is not None))
    if failure and not told:
        raise failure
    for _, refusal, failed in rows:
        if failed:
            raise _RefusedError(refusal or "an error on another rank")
    return [listing for listing, _, _ in rows]


def _refusal(error: BaseException) -> str | None:
    """What the disk said, if that is what is behind an error. The library wraps every rank's
    in one of its own, and its writer turns a failed write into a RuntimeError."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
        return str(error).splitlines()[0] if isinstance(error, OSError | RuntimeError) else None
    return str(error) if isinstance(error, OSError) else None
