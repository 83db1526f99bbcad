"""Samples of the shards, evenly spread, and what they look like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stack.data.decode import FIELDS
from stack.data.index import ShardEntry
from stack.data.shard import Raw, SampleError, Shard
from stack.data.storage import LocalFolder
from stack.util.errors import UserError
from stack.util.progress import progress

Value = TypeVar("Value")
Place = tuple[Path, ShardEntry]
"""A shard and the folder that it lies in."""

_MOST = 20_000
_READ = ("txt", "json", "tokens.npy")

SIDES = (0, 128, 256, 384, 512, 640, 768, 1024, 1536, 2048, 3072, 4096)
RATIOS = (0, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 9 / 10, 10 / 9, 4 / 3, 3 / 2, 2, 3)
WORDS = (*range(9), 10, 12, 16, 20, 25, 30, 40, 50, 75, 100)
TOKENS = (*range(0, 75, 5), 75, 77)
"""Where the buckets of the histograms begin; the last ones have no end."""


@dataclass
class Looks:
    """What was seen of the samples: a number for each that tells it."""

    samples: int = 0
    sides: list[int] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    different: set[bytes] = field(default_factory=set)

    def add(self, key: str, raw: Raw) -> None:
        self.samples += 1
        if "json" in raw:
            about = FIELDS["json"](raw)
            width, height = about.get("original_width"), about.get("original_height")
            if width and height:
                self.sides.append(min(width, height))
                self.ratios.append(width / height)
        if "txt" in raw:
            words = text_of(raw).split()
            self.words.append(len(words))
            if words:
                self.different.add(hashlib.blake2b(raw["txt"], digest_size=16).digest())
        if "tokens.npy" in raw:
            # CLIP's end token is its largest id, and also pads.
            self.tokens.append(int(FIELDS["tokens"](raw).argmax()) + 1)

    def told(self) -> dict[str, Any]:
        """The histograms, and how many captions are empty or a repetition."""
        sizes = {
            "shorter_side": histogram(self.sides, SIDES),
            "aspect_ratio": histogram(self.ratios, RATIOS),
        }
        texts = {"words": histogram(self.words, WORDS), "tokens": histogram(self.tokens, TOKENS)}
        empty = self.words.count(0)
        full = len(self.words) - empty
        return {
            "looked_at": self.samples,
            "resolutions": {name: found for name, found in sizes.items() if found},
            "captions": {name: found for name, found in texts.items() if found},
            "empty_captions": empty,
            "duplicate_captions": 1 - len(self.different) / full if full else 0.0,
        }


def look(shards: Sequence[Place]) -> Looks:
    """Look at up to 20,000 samples; damage is a UserError."""
    looks, total = Looks(), count(shards)
    wanted = min(total, _MOST)
    places = np.arange(wanted) * total // max(wanted, 1)  # No two are equal.
    with progress("samples", total=wanted) as bar:
        for _ in read(shards, places, _READ, looks.add):
            bar.advance()
    return looks


def count(shards: Sequence[Place]) -> int:
    return sum(entry.samples for _, entry in shards)


def read(
    shards: Sequence[Place],
    places: np.ndarray,
    fields: tuple[str, ...],
    see: Callable[[str, Raw], Value],
) -> Iterator[Value]:
    """What `see` makes of the key and these fields of samples. `places`: numbers of samples over
    all shards, ascending."""
    start = 0
    for folder, entry in shards:
        low, high = np.searchsorted(places, (start, start + entry.samples))
        if low < high:
            with closing(_open(folder, entry)) as shard:
                for row in (places[low:high] - start).tolist():
                    try:
                        yield see(shard.key(row), shard.read(row, fields))
                    except SampleError as error:
                        where = f"{shard.path}: {shard.key(row)}"
                        raise UserError(f"{where}: {error}; the sample is damaged") from None
        start += entry.samples


def _open(folder: Path, entry: ShardEntry) -> Shard:
    try:
        return Shard(LocalFolder(folder), entry)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing; restore it or make the folder anew") from None


def text_of(raw: Raw) -> str:
    """The caption; bytes that are not UTF-8, as foreign shards have, are replaced."""
    return str(raw.get("txt", b""), "utf-8", "replace")


def histogram(values: Sequence[float], edges: Sequence[float]) -> dict[str, Any] | None:
    """How many values lie in each bucket, and what they are like on the whole; None for none."""
    if not values:
        return None
    counts, _ = np.histogram(values, [*edges, np.inf])
    ends = [*edges[1:], None]
    return {
        "samples": len(values),
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "buckets": [
            {"from": start, "below": end, "samples": number}
            for start, end, number in zip(edges, ends, counts.tolist(), strict=True)
        ],
    }
