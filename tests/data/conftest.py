"""Small folders of shards."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.shards import Sample, ShardFolder, Tally
from stack.data.decode import encode_npy

FIELDS = ("png", "txt", "json", "cls", "latent.npy", "tokens.npy")


def sample(number: int, fields: Sequence[str] = FIELDS, side: int = 8) -> Sample:
    """A sample whose every field tells its number."""
    image = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, number // 256, 7)).save(image, "png")
    content = {
        "png": image.getvalue(),
        "txt": f"caption {number}".encode(),
        "json": json.dumps({"number": number}).encode(),
        "cls": str(number % 10).encode(),
        "latent.npy": encode_npy(np.full((4, 2, 2), number, np.float16)),
        "tokens.npy": encode_npy(np.full(77, number, np.uint16)),
    }
    return f"{number:06d}", {name: content[name] for name in fields}


def write_folder(
    path: Path,
    sizes: Sequence[int],
    *,
    fields: Sequence[str] = FIELDS,
    first: int = 0,
    side: Callable[[int], int] = lambda number: 8,
    **known: Any,
) -> Path:
    """Shards of the given sizes with samples numbered from `first` on."""
    folder = ShardFolder(path, {"test": [*sizes, first]})
    for shard, size in enumerate(sizes):
        rows = [sample(number, fields, side(number)) for number in range(first, first + size)]
        folder.write(f"{shard:06d}.tar", rows, Tally())
        first += size
    folder.finish(**known)
    return path


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """write_folder under tmp_path: make_folder("name", sizes, ...)."""
    return lambda name, sizes, **options: write_folder(tmp_path / name, sizes, **options)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """75 samples in four uneven shards, never changed by a test."""
    return write_folder(tmp_path_factory.mktemp("shards") / "plain", (20, 7, 31, 17))
