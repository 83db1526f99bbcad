"""What goes wrong with a shard on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def flip(path: Path, offset: int) -> None:
    """Garble one byte."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def place_of(folder: Path, shard: str, row: int, field: str) -> int:
    """Where a member's bytes begin in its tar."""
    return int(np.load(folder / f"{shard}.index.npy")[field]["offset"][row])


def ruin(folder: Path, shard: str, fields: tuple[str, ...] = ("latent.npy",)) -> None:
    """Garble every sample of a shard, as when a tar of the same size and member names was written
    after its index."""
    path = folder / f"{shard}.tar"
    index = np.load(folder / f"{shard}.index.npy")
    data = bytearray(path.read_bytes())
    for field in fields:
        for start, size, _ in index[field]:
            data[start : start + size] = bytes(size)
    path.write_bytes(data)
