"""Composition of stored weights: whatever backend saved them, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from stack.checkpoint import folders, read

NETWORKS = ("student", "fake", "heads")
"""Trained networks of a distillation; a checkpoint's other weights are the student's averages."""


def stored_weights(folder: Path, name: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters by name, float32 and whole, of a network or an average in a checkpoint; some
    of them flat.

    Raises:
        UserError: the checkpoint does not have them.
    """
    if name in NETWORKS and str(folders.mark(folder).get("backend")).startswith("zero"):
        from stack.parallel.zero import zero_weights

        return zero_weights(folder / name)
    return read.iterate_tensors(folder, f"{name}.", leave="optimizer.")
