"""Encoded pictures, with what is known of each, as shards in a random order."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from data_prep.shards import EXTENSIONS, Sample, ShardFolder, Tally
from stack.data.decode import decode_image
from stack.data.index import Manifest
from stack.util.errors import UserError
from stack.util.progress import progress
from stack.util.retry import reason


class DamagedError(Exception):
    """A file, or a part of one, that cannot be read as what it should be."""


@contextmanager
def damage() -> Iterator[None]:
    """Whatever a reader raises over bytes that it is given, as a DamagedError: readers meet bytes
    of anyone's, and their errors are of any kind. What the disk says stays as it is, except that
    there is no such place in a file: bytes may name any place."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise DamagedError(reason(error)) from None


@dataclass(frozen=True)
class Picture:
    """One sample to be.

    Args:
        key: any text; what a key must not hold is replaced. image: bytes of a PNG, JPEG or WebP
            file. text: its caption. label: its class. about: what its json says.
    """

    key: str
    image: bytes
    text: str | None = None
    label: int | None = None
    about: dict[str, Any] = field(default_factory=dict)


def write_pictures(folder: ShardFolder, picture: Callable[[int], Picture], count: int) -> Manifest:
    """Write pictures 0 to `count` - 1 in a random order, their bytes as they are.

    One that `picture` raises DamagedError for, or that cannot be decoded whole, is left out,
    counted as `dropped`.

    Args:
        folder: unfinished; its origin has `verb`, `seed` of the order and `samples_per_shard`.
    """
    origin = folder.origin
    size = origin["samples_per_shard"]
    order = np.argsort(np.random.Philox(key=origin["seed"]).random_raw(count), kind="stable")
    with progress(origin["verb"], total=count, initial=folder.samples) as bar:
        for number, start in enumerate(range(0, count, size)):
            name = f"{number:06d}.tar"
            part = order[start : start + size].tolist()
            if name not in folder.entries:
                tally = Tally()
                folder.write(name, _samples(picture, part, tally), tally)
                bar.advance(len(part))
    return folder.finish()


def _samples(
    picture: Callable[[int], Picture], numbers: Sequence[int], tally: Tally
) -> Iterator[Sample]:
    for number in numbers:
        try:
            row = picture(number)
            extension, size = _decoded(row.image)
        except DamagedError:
            tally.counts["dropped"] += 1
            continue
        tally.sizes[size] += 1
        members = {
            extension: row.image,
            "json": json.dumps(row.about, ensure_ascii=False, default=str).encode(),
        }
        if row.text is not None:
            members["txt"] = row.text.encode()
        if row.label is not None:
            members["cls"] = str(row.label).encode()
        # A dot would end the key, a slash would make a folder.
        yield row.key.replace(".", "_").replace("/", "_"), members


def _decoded(data: bytes) -> tuple[str, str]:
    """Extension and size of a picture, after decoding all of it as training will.

    Raises:
        DamagedError: that fails, or shards do not hold its format.
    """
    with damage():
        # The format first: for some that are not held, Pillow would start other programs.
        with Image.open(io.BytesIO(data)) as image:
            extension = EXTENSIONS[str(image.format)]
        height, width, _ = decode_image(data).shape
    return extension, f"{width}x{height}"
