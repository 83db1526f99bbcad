"""Pictures of known classes as shards."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_prep.shards import Sample, ShardFolder, Tally
from stack.data.index import Manifest
from stack.util.progress import progress

_EXTENSION = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


@dataclass(frozen=True)
class Labelled:
    """A picture of a class.

    Args:
        image: bytes of a PNG, JPEG or WebP file. about: what its json says.
    """

    key: str
    image: bytes
    label: int
    text: str | None = None
    about: dict[str, Any] = field(default_factory=dict)


def labelled_shards(
    picture: Callable[[int], Labelled],
    count: int,
    out: Path,
    origin: dict[str, Any],
    *,
    seed: int,
    samples_per_shard: int,
    overwrite: bool,
) -> Manifest:
    """Write pictures 0 to `count` - 1, in a random order fixed by `seed`, as shards, and say on
    stderr what sizes they have: training takes squares of one size.

    Args:
        origin: what they are made from; seed and size of the shards are added.
    """
    origin = {**origin, "seed": seed, "samples_per_shard": samples_per_shard}
    folder = ShardFolder(out, origin, overwrite=overwrite)
    if folder.finished:
        return Manifest.read(out)
    order = np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable")
    with progress(origin["verb"], total=count, initial=folder.samples) as bar:
        for number, start in enumerate(range(0, count, samples_per_shard)):
            name = f"{number:06d}.tar"
            part = order[start : start + samples_per_shard].tolist()
            if name not in folder.entries:
                tally = Tally()
                folder.write(name, _samples(picture, part, tally), tally)
                bar.advance(len(part))
    manifest = folder.finish()
    print(f"{out}: {_told(folder.tally)}", file=sys.stderr)
    return manifest


def _told(tally: Tally) -> str:
    """Sizes of the pictures, the most frequent first."""
    most = tally.sizes.most_common(3)
    sizes = [f"{size} pixels ({count})" for size, count in most]
    more = tally.sizes.total() - sum(count for _, count in most)
    told = ", ".join([*sizes, *([f"{more} of other sizes"] if more else [])])
    return told if tally.resolution else f"{told}: training takes squares of one size"


def _samples(
    picture: Callable[[int], Labelled], numbers: Sequence[int], tally: Tally
) -> Iterator[Sample]:
    for row in map(picture, numbers):
        try:
            with Image.open(io.BytesIO(row.image)) as opened:
                extension = _EXTENSION[str(opened.format)]
                tally.sizes[f"{opened.width}x{opened.height}"] += 1
        except (UnidentifiedImageError, KeyError, TypeError):
            tally.counts["dropped"] += 1
            continue
        members = {
            extension: row.image,
            "cls": str(row.label).encode(),
            "json": json.dumps(row.about, ensure_ascii=False, default=str).encode(),
        }
        if row.text is not None:
            members["txt"] = row.text.encode()
        # A dot would end the key, a slash would make a folder.
        yield row.key.replace(".", "_").replace("/", "_"), members
