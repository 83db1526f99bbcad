"""Pictures of known classes as shards."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.pictures import Picture, write_pictures
from data_prep.shards import ShardFolder, Tally, sole_writer
from stack.data.index import Manifest


def labelled_shards(
    picture: Callable[[int], Picture],
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
    with sole_writer(out):
        folder = ShardFolder(out, origin, overwrite=overwrite)
        if folder.finished:
            return Manifest.read(out)
        manifest = write_pictures(folder, picture, count)
    print(f"{out}: {_told(folder.tally)}", file=sys.stderr)
    return manifest


def _told(tally: Tally) -> str:
    """Sizes of the pictures, the most frequent first."""
    most = tally.sizes.most_common(3)
    sizes = [f"{size} pixels ({count})" for size, count in most]
    more = tally.sizes.total() - sum(count for _, count in most)
    told = ", ".join([*sizes, *([f"{more} of other sizes"] if more else [])])
    return told if tally.resolution else f"{told}: training takes squares of one size"
