"""Composition of stored weights: whatever backend saved them, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from stack.checkpoint import commit, read, verify
from stack.util.errors import UserError

NETWORKS = ("student", "fake", "heads")
"""Trained networks of a distillation; a checkpoint's other weights are the student's averages."""


def checkpoint_of(path: Path, what: str = "") -> Path:
    """The checkpoint that a path names: the folder of one, or the newest whole one of a run.

    Args:
        what: field or option that named it, with a colon and a blank, for messages.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if path.name.startswith("step-"):
        reason = verify.fault(path) if path.is_dir() else "no such checkpoint"
        if reason:
            raise UserError(f"{what}{path}: {reason}")
        return path
    found, skipped = verify.latest(path / "checkpoints")
    for reason in skipped:
        print(f"skipped checkpoint {reason}")
    if found is None:
        raise UserError(f"{what}{path}: checkpoints/: none yet; run stack distill first")
    return found


def stored_weights(folder: Path, name: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters by name, float32 and whole, of a network or an average in a checkpoint; some
    of them flat.

    Raises:
        UserError: the checkpoint does not have them.
    """
    if name in NETWORKS and str(commit.mark(folder).get("backend")).startswith("zero"):
        from stack.parallel.zero import zero_weights

        return zero_weights(folder / name)
    return read.iterate_tensors(folder, f"{name}.", leave="optimizer.")
