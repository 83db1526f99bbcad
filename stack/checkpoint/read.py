"""Reading a checkpoint: into a run's tensors in place, or a few tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from stack.checkpoint.commit import COMMIT
from stack.util.errors import UserError
from stack.util.files import read_json


def describe(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor in a checkpoint."""
    entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        name: (tuple(entry.size), entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def code_hash(folder: Path) -> str:
    """SHA-256 of the code that saved a checkpoint."""
    return read_json(folder / COMMIT)["code"]


def load_into(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fill ``tensors`` in place and return the checkpoint's other state.

    Raises:
        UserError: a tensor is missing, left over, or of another shape or dtype (the library
            would cast, and ignore what is left over, without a word).
    """
    stored = describe(folder)
    wanted = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise UserError(
                f"{folder}: {name}: the checkpoint has {stored.get(name, 'nothing')}, the run "
                f"{wanted.get(name, 'nothing')}; resume with the recipe the run was started with"
            )
    dcp.load(dict(tensors), checkpoint_id=folder, no_dist=True)
    return read_json(folder / "state.json")


def read_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by the rest of their names.

    Raises:
        UserError: there is none.
    """
    stored = describe(folder)
    wanted = {
        name: torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in stored.items()
        if name.startswith(prefix)
    }
    if not wanted:
        raise UserError(f"{folder}: {prefix}: no such tensors in this checkpoint")
    dcp.load(wanted, checkpoint_id=folder, no_dist=True)
    return {name.removeprefix(prefix): value for name, value in wanted.items()}
