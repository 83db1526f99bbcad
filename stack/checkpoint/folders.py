"""A run's checkpoint folders, by their names: which there are, and moving them about."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

from stack.util.errors import UserError
from stack.util.files import fsync, read_json

COMMIT = "COMMIT.json"


def step_folder(root: Path, step: int) -> Path:
    """Folder of the checkpoint after ``step`` iterations."""
    return root / f"step-{step:07d}"


def step_of(folder: Path) -> int:
    """Iterations done at a checkpoint."""
    return int(folder.name.removeprefix("step-"))


def is_step(folder: Path) -> bool:
    """Whether a folder is named as checkpoints are."""
    return bool(re.fullmatch(r"step-\d+", folder.name))


def run_of(folder: Path) -> Path:
    """The run that a checkpoint's folder, put aside or not, is of."""
    return next(above for above in folder.parents if above.name == "checkpoints").parent


def roots(run: Path) -> list[Path]:
    """Folders of checkpoints in a run's folder: one, or one of each of its trainings."""
    return [
        root for root in (run / "checkpoints", *sorted(run.glob("*/checkpoints"))) if root.is_dir()
    ]


def committed(root: Path) -> list[Path]:
    """Committed checkpoint folders, oldest first; not verified."""
    return sorted(path for path in root.glob("step-*") if is_step(path) and path.is_dir())


def sweep(root: Path) -> None:
    """Remove what an interrupted save, conversion or removal left behind."""
    for pattern in (".staging-*", ".trash-*", ".universal-*"):
        for path in root.glob(pattern):
            shutil.rmtree(path)


def trash(path: Path) -> None:
    """Remove a checkpoint; a reader sees it whole or not at all."""
    gone = path.parent / f".trash-{path.name}-{uuid.uuid4().hex[:8]}"
    os.rename(path, gone)
    shutil.rmtree(gone)


def set_aside(root: Path, step: int) -> Path | None:
    """Move the checkpoints after ``step`` out of the way of a run that goes on from there.

    Returns: the folder that holds them now, if there were any.
    """
    later = [path for path in committed(root) if step_of(path) > step]
    if not later:
        return None
    folder = root / f"before-{step:07d}-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    for path in later:
        os.rename(path, folder / path.name)
    fsync(folder)
    fsync(root)
    return folder


def mark(folder: Path) -> dict[str, Any]:
    """What COMMIT.json says of a checkpoint besides its files; nothing if it is damaged."""
    try:
        found = read_json(folder / COMMIT)
    except UserError:
        return {}
    return {key: value for key, value in found.items() if key != "files"}
