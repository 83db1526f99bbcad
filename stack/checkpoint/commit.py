"""Writing a checkpoint: staged, hashed, committed by one rename.

    checkpoints/.staging-<step>-<id>/   tensors (torch.distributed.checkpoint), state.json,
                                        recipe.yaml, then COMMIT.json with sizes and SHA-256
    checkpoints/step-0000500/           the same folder, renamed

A folder named step-* was complete when it was renamed; whether it still is, verify.py tells.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from stack.util.errors import UserError
from stack.util.files import fsync, sha256_file, write_atomic, write_json

COMMIT = "COMMIT.json"


def step_folder(root: Path, step: int) -> Path:
    """Folder of the checkpoint after ``step`` iterations."""
    return root / f"step-{step:07d}"


def save(
    root: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    recipe: str,
    code_hash: str,
    world_size: int,
    keep_last: int,
) -> Path:
    """Write and commit a checkpoint, then remove older ones.

    Args:
        root: the run's checkpoints/ folder.
        tensors: everything that is a tensor, by unique name.
        state: everything else, as JSON.
        world_size: ranks that trained.
        keep_last: newest checkpoints kept, this one included; older ones go once it is
            committed. Later ones, which a resume has passed over as damaged, do not count.

    Raises:
        UserError: the disk refused; older checkpoints are untouched.
    """
    root.mkdir(parents=True, exist_ok=True)
    staging = root / f".staging-{step}-{uuid.uuid4().hex[:8]}"
    final = step_folder(root, step)
    try:
        dcp.save(dict(tensors), checkpoint_id=staging, no_dist=True)
        write_json(staging / "state.json", dict(state))
        write_atomic(staging / "recipe.yaml", recipe)
        files = sorted(path for path in staging.iterdir())
        listing = {
            file.name: {"size": file.stat().st_size, "sha256": sha256_file(file)} for file in files
        }
        for file in files:
            fsync(file)
        write_json(
            staging / COMMIT,
            {"step": step, "world_size": world_size, "code": code_hash, "files": listing},
        )
        if final.exists():
            trash(final)
        os.rename(staging, final)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if refusal := _refusal(error):
            raise UserError(
                f"{final}: not saved ({refusal}); older checkpoints are untouched"
            ) from error
        raise
    fsync(root)
    for old in [path for path in committed(root) if path <= final][:-keep_last]:
        trash(old)
    return final


def committed(root: Path) -> list[Path]:
    """Committed checkpoint folders, oldest first; not verified."""
    return sorted(path for path in root.glob("step-*") if path.is_dir())


def sweep(root: Path) -> None:
    """Remove what an interrupted save or removal left behind."""
    for pattern in (".staging-*", ".trash-*"):
        for path in root.glob(pattern):
            shutil.rmtree(path)


def trash(path: Path) -> None:
    """Remove a checkpoint; a reader sees it whole or not at all."""
    gone = path.parent / f".trash-{path.name}-{uuid.uuid4().hex[:8]}"
    os.rename(path, gone)
    shutil.rmtree(gone)


def _refusal(error: BaseException) -> str | None:
    """What the disk said, if that is what is behind an error. The library wraps every rank's
    in one of its own, and its writer turns a failed write into a RuntimeError."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
        return str(error).splitlines()[0] if isinstance(error, OSError | RuntimeError) else None
    return str(error) if isinstance(error, OSError) else None
