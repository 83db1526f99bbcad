"""Pictures are decoded whole before they go into shards: damage is counted, and ends nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.cifar10 import cifar10
from data_prep.imagenet64 import imagenet64
from data_prep.parquet import shards_from_parquet
from data_prep.pictures import DamagedError, damage
from data_prep.shards import sole_writer
from stack.data.index import Manifest
from stack.util.errors import UserError

FORMATS = {
    "png": {"format": "png"},
    "jpeg": {"format": "jpeg"},
    "progressive jpeg": {"format": "jpeg", "progressive": True},
    "webp": {"format": "webp"},
    "lossless webp": {"format": "webp", "lossless": True},
}
KEPT = (0, 1, 12, 20, 300, 0.5, 0.9, -40)
"""What is left of a file: bytes from the front, a share, or all but some at the end."""


def picture(side: int = 32, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def cut(data: bytes, kept: float) -> bytes:
    return data[: int(kept * len(data)) if 0 < kept < 1 else int(kept)]


def by_cifar10(images: list[bytes], folder: Path) -> Manifest:
    table = {"image": images, "label": [1] * len(images)}
    pq.write_table(pa.table(table), folder / "rows.parquet")
    return cifar10(folder / "rows.parquet", folder / "out")


def by_shards(images: list[bytes], folder: Path) -> Manifest:
    table = {"image": images, "text": ["a car"] * len(images)}
    pq.write_table(pa.table(table), folder / "rows.parquet")
    return shards_from_parquet(folder / "rows.parquet", folder / "out")


def by_imagenet64(images: list[bytes], folder: Path) -> Manifest:
    (folder / "in").mkdir()
    for number, image in enumerate(images):
        (folder / f"in/{number}.png").write_bytes(image)
    labels = {"labels": [[f"{number}.png", 1] for number in range(len(images))]}
    (folder / "in/dataset.json").write_text(json.dumps(labels))
    return imagenet64(folder / "in", folder / "out")


Make = Callable[[list[bytes], Path], Manifest]
MAKERS = pytest.mark.parametrize("make", [by_cifar10, by_shards, by_imagenet64])


@MAKERS
@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_that_is_cut_is_left_out_and_counted(
    kind: str, make: Make, tmp_path: Path
) -> None:
    whole = picture(**FORMATS[kind])
    manifest = make([whole, *(cut(whole, kept) for kept in KEPT), whole], tmp_path)
    assert (manifest.samples, manifest.counts) == (2, {"dropped": len(KEPT)})
    assert manifest.resolution == 32


@MAKERS
def test_what_shards_do_not_hold_is_left_out_and_counted(make: Make, tmp_path: Path) -> None:
    others = [picture(format=kind) for kind in ("gif", "bmp", "tiff", "eps")]
    manifest = make([picture(format="png"), *others, b"no picture"], tmp_path)
    assert (manifest.samples, manifest.counts) == (1, {"dropped": 5})


@MAKERS
def test_every_mode_that_training_decodes_is_kept(make: Make, tmp_path: Path) -> None:
    images = [picture(mode=mode, format="png") for mode in ("RGB", "RGBA", "L", "LA", "P", "1")]
    manifest = make([*images, picture(mode="CMYK", format="jpeg")], tmp_path)
    assert (manifest.samples, manifest.counts) == (7, {})


@MAKERS
def test_one_process_writes_at_a_time(make: Make, tmp_path: Path) -> None:
    with (
        sole_writer(tmp_path / "out"),
        pytest.raises(UserError, match="out: another process is writing into this folder"),
    ):
        make([picture(format="png")], tmp_path)


RAISED = {
    "a decoder's": (OSError("Truncated File Read"), DamagedError, "Truncated File Read"),
    "one that says nothing": (EOFError(), DamagedError, "EOFError"),
    "two lines": (ValueError("one\n two"), DamagedError, "one two"),
    "no such place": (OSError(22, "Invalid argument"), DamagedError, "Invalid argument"),
    "the disk's": (OSError(5, "Input/output error"), OSError, "Input/output error"),
    "a user's": (UserError("x: missing"), UserError, "x: missing"),
}
"""What is raised inside, and what comes out."""


@pytest.mark.parametrize("case", RAISED)
def test_damage_is_told_from_what_the_disk_says(case: str) -> None:
    error, kind, message = RAISED[case]
    with pytest.raises(kind, match=message), damage():
        raise error
