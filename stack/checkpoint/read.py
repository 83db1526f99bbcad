"""Reading a checkpoint: into a run's tensors in place, or lot after lot.

A tensor is stored whole, whatever ranks it was cut over, and each rank reads what it holds. Of
tensors that a rank holds as stretches of the flattened whole, each stretch is stored under
``name@start``; they are put together from whatever stretches there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from stack.checkpoint.folders import COMMIT
from stack.util.errors import UserError
from stack.util.files import read_json

PER_RANK = "rng."
"""Names under which every rank has entries of its own."""

Kind = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype."""


class _Reader(FileSystemReader):
    """Reads the table of contents once, however many tensors are asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._contents = super().read_metadata()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._contents


def code_hash(folder: Path) -> str:
    """SHA-256 of the code that saved a checkpoint."""
    return read_json(folder / COMMIT)["code"]


def load_into(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fill ``tensors`` in place and return the checkpoint's other state.

    Of the entries PER_RANK, those of ranks that are no more are left, and what a new rank asks
    for stays as it is.

    Raises:
        UserError: a tensor is missing, left over, or of another shape or dtype (the library
            would cast, and ignore what is left over, without a word).
    """
    reader = _Reader(folder)
    stored = _kinds(reader)
    wanted = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    here, there = _merged(wanted), _merged(stored)
    for name in sorted(n for n in here.keys() | there.keys() if not n.startswith(PER_RANK)):
        if not _fits(here.get(name), there.get(name), cut=name not in stored):
            raise UserError(
                f"{folder}: {name}: the checkpoint has {there.get(name, 'nothing')}, the run "
                f"{here.get(name, 'nothing')}; resume with the recipe the run was started with"
            )
    whole = {name: value for name, value in tensors.items() if wanted[name] == stored.get(name)}
    _load(reader, whole)
    for name in wanted.keys() - whole.keys():
        if not name.startswith(PER_RANK):
            _assemble(reader, stored, name, tensors[name])
    return read_json(folder / "state.json")


def read_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by the rest of their names."""
    return dict(iterate_tensors(folder, prefix))


def iterate_tensors(
    folder: Path, prefix: str, *, leave: str = "\0"
) -> Iterator[tuple[str, Tensor]]:
    """Name, without ``prefix``, and value of the tensors that begin with it, each whole; those
    stored in stretches come flat. No more than a lot of them is in memory at a time.

    Args:
        leave: those whose rest of the name begins so are left out.

    Raises:
        UserError: there is none.
    """
    reader = _Reader(folder)
    stored = _kinds(reader)
    wanted = {
        name: kind
        for name, kind in _merged(stored).items()
        if name.startswith(prefix) and not name.startswith(prefix + leave)
    }
    if not wanted:
        raise UserError(f"{folder}: {prefix}: no such tensors in this checkpoint")
    for lot in _lots(wanted):
        values = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in lot.items()}
        _load(reader, {name: value for name, value in values.items() if name in stored})
        for name in values.keys() - stored.keys():
            _assemble(reader, stored, f"{name}@0", values[name])
        while values:
            name = next(iter(values))
            yield name.removeprefix(prefix), values.pop(name)


_LOT = 1 << 26
"""Bytes of tensors that are read together."""


def _lots(kinds: Mapping[str, Kind]) -> Iterator[dict[str, Kind]]:
    """Cut where a lot would be larger, unless it is one tensor."""
    lot: dict[str, Kind] = {}
    size = 0
    for name, (shape, dtype) in kinds.items():
        more = prod(shape) * dtype.itemsize
        if lot and size + more > _LOT:
            yield lot
            lot, size = {}, 0
        lot[name] = shape, dtype
        size += more
    yield lot


def _load(reader: _Reader, tensors: dict[str, Any]) -> None:
    """Fill tensors that are stored whole."""
    if tensors:
        dcp.load(tensors, storage_reader=reader, no_dist=True)


def _kinds(reader: FileSystemReader) -> dict[str, Kind]:
    entries = reader.read_metadata().state_dict_metadata
    return {
        name: (tuple(entry.size), entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _merged(kinds: Mapping[str, Kind]) -> dict[str, Kind]:
    """The same with the stretches of a tensor as one, of the length they reach to."""
    merged: dict[str, Kind] = {}
    lengths: dict[str, int] = defaultdict(int)
    for name, (shape, dtype) in kinds.items():
        base, cut, start = name.partition("@")
        if cut:
            lengths[base] = max(lengths[base], int(start) + shape[0])
            merged[base] = ((lengths[base],), dtype)
        else:
            merged[name] = (shape, dtype)
    return merged


def _fits(here: Kind | None, there: Kind | None, *, cut: bool) -> bool:
    """Whether a tensor can be filled: it is equal, or, where it is stored in stretches, as long
    at least as what this rank has of it, which may be nothing."""
    if cut and there:
        return here is None or (here[0] <= there[0] and here[1] == there[1])
    return here == there


def _assemble(reader: _Reader, stored: Mapping[str, Kind], name: str, value: Tensor) -> None:
    """Fill one stretch from the stored stretches that it meets."""
    base, _, text = name.partition("@")
    first, last = int(text), int(text) + len(value)
    filled = 0
    for key, (shape, dtype) in stored.items():
        head, cut, start = key.partition("@")
        if not cut or head != base:
            continue
        low, high = max(first, int(start)), min(last, int(start) + shape[0])
        if low < high:
            part = torch.empty(shape, dtype=dtype)
            _load(reader, {key: part})
            value[low - first : high - first] = part[low - int(start) : high - int(start)]
            filled += high - low
    if filled != len(value):
        raise UserError(
            f"{reader.path}: {name}: {filled} of {len(value)} elements are in the checkpoint"
        )
