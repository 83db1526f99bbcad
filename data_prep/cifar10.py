"""`data_prep cifar10`: CIFAR-10 (Krizhevsky 2009) as shards with pictures, classes and captions.

From the python batches as published, a folder or tar `cifar-10-batches-py`, or from a parquet file
with the columns `image` (bytes of PNG, JPEG or WebP files), `label` and, if there, `id`, `text`.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from data_prep.labelled import labelled_shards
from data_prep.parquet import read_parquet, row_of
from data_prep.pictures import DamagedError, Picture, damage
from stack.data.index import Manifest
from stack.util.errors import UserError
from stack.util.files import sha256_file
from stack.util.inert_pickle import Call, load_inert

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
BATCHES = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}
"""Files of each part."""

_FOLDER = "cifar-10-batches-py"
_SIDE = 32
_ARRAY = "numpy.core.multiarray._reconstruct"
_DTYPE = "numpy.dtype"
_ALLOWED = frozenset({_ARRAY, _DTYPE, "numpy.ndarray"})
"""All that the published batches name."""

Pictures = tuple[Callable[[int], Picture], int]
"""The picture of a number, and how many there are."""


def cifar10(
    source: Path,
    out: Path,
    *,
    split: str | None = None,
    seed: int = 0,
    samples_per_shard: int = 1000,
    overwrite: bool = False,
) -> Manifest:
    """Write CIFAR-10, in a random order fixed by `seed`, as shards.

    A sample has `png` (or a parquet's bytes as they are), `cls`, `txt` ("a photo of a cat" unless
    the parquet says otherwise) and `json` (the class's name and a parquet's further columns).

    Args:
        split: "train" or "test" of the batches, "train" if not given; a parquet file has none.

    Raises:
        UserError: the source is neither, or holds something else than CIFAR-10 does, or a part of
            a parquet file is asked for.
    """
    if source.suffix == ".parquet":
        if split:
            raise UserError(
                f"{source}: --split {split}: a parquet file is taken whole; leave --split out, and "
                "give the file of the part that is wanted"
            )
        picture, count = _from_parquet(source)
        origin = {"verb": "cifar10", "parquet": sha256_file(source)}
    else:
        split = split or "train"
        files = _read_batches(source, BATCHES[split])
        picture, count = _from_batches(files, source)
        digest = hashlib.sha256(b"".join(files.values())).hexdigest()
        origin = {"verb": "cifar10", "batches": digest, "split": split}
    return labelled_shards(
        picture,
        count,
        out,
        origin,
        seed=seed,
        samples_per_shard=samples_per_shard,
        overwrite=overwrite,
    )


def caption(label: int) -> str:
    """ "a photo of a cat" of 3."""
    name = CLASSES[label]
    return f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}"


def _from_parquet(path: Path) -> Pictures:
    table = read_parquet(path, ("image", "label"), optional=("text",))
    _check(table["label"].to_pylist(), str(path))

    def picture(number: int) -> Picture:
        row = row_of(table, number)
        image, label = row.pop("image"), row.pop("label")
        text = row.pop("text", None)
        key = f"{number:05d}" if row.get("id") is None else str(row["id"])
        told = caption(label) if text is None else text
        return Picture(key, image, told, label, {"class": CLASSES[label], **row})

    return picture, len(table)


def _check(labels: list[Any], source: str) -> None:
    if not labels:
        raise UserError(f"{source}: holds no pictures")
    for label in labels:
        if type(label) is not int or label not in range(len(CLASSES)):
            raise UserError(f"{source}: label: {label!r} is not one of 0 to {len(CLASSES) - 1}")


def _read_batches(source: Path, names: list[str]) -> dict[str, bytes]:
    """The files of a folder or tar by name."""
    if source.is_dir():
        for name in names:
            if not (source / name).is_file():
                raise UserError(f"{source}: {name}: no such file; it is a part of CIFAR-10")
        return {name: (source / name).read_bytes() for name in names}
    try:
        with damage(), tarfile.open(source) as tar:
            files = {name: _member(tar, f"{_FOLDER}/{name}", source).read() for name in names}
            # What compressed the tar put its checksum at the end.
            while tar.fileobj and tar.fileobj.read(1 << 20):
                continue
            return files
    except FileNotFoundError:
        raise UserError(f"{source}: no such file or folder") from None
    except DamagedError as error:
        raise UserError(
            f"{source}: neither a folder or tar of CIFAR-10's python batches nor a .parquet file "
            f"({error})"
        ) from None


def _member(tar: tarfile.TarFile, name: str, source: Path) -> IO[bytes]:
    file = tar.extractfile(name) if name in tar.getnames() else None
    if file is None:
        raise UserError(f"{source}: {name}: not in this tar")
    return file


def _from_batches(files: dict[str, bytes], source: Path) -> Pictures:
    parts = [_batch(data, f"{source}: {name}") for name, data in files.items()]
    pixels = np.concatenate([part for part, _ in parts])
    labels = [label for _, part in parts for label in part]

    def picture(number: int) -> Picture:
        buffer = io.BytesIO()
        Image.fromarray(pixels[number].transpose(1, 2, 0)).save(buffer, "png")
        label = labels[number]
        about = {"class": CLASSES[label]}
        return Picture(f"{number:05d}", buffer.getvalue(), caption(label), label, about)

    return picture, len(labels)


def _batch(data: bytes, source: str) -> tuple[np.ndarray, list[int]]:
    """Pixels uint8 (N, 3, 32, 32) and N labels of one file, a pickle by Python 2: its arrays are
    put together here from their bytes, and nothing that it names is called."""
    batch = load_inert(io.BytesIO(data), source, _ALLOWED, encoding="bytes")
    try:
        labels = list(batch[b"labels"])
        pixels = _array(batch[b"data"]).reshape(len(labels), 3, _SIDE, _SIDE)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        kind = type(error).__name__
        raise UserError(f"{source}: not laid out as CIFAR-10 is ({kind}: {error})") from None
    _check(labels, source)
    return pixels, labels


def _array(call: Call) -> np.ndarray:
    """numpy's pickled state: (version, shape, dtype, column-major, bytes)."""
    _, _, dtype, column_major, raw = call.state
    if call.name != _ARRAY or dtype.name != _DTYPE or dtype.args[0] != b"u1" or column_major:
        raise TypeError("data is no array of bytes")
    return np.frombuffer(raw, np.uint8)
