"""The sample sheet: some samples of the shards as small pictures with their captions."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_prep.stats.samples import Place, count, read, text_of
from stack.data.decode import FIELDS
from stack.data.shard import Raw, SampleError

_SIDE = 192
"""Pixels of the longer side at most."""


@dataclass(frozen=True)
class Picture:
    """A JPEG file in a data: URI."""

    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Tile:
    """One sample. `original`: the caption that it had first, if it is another; `garbled`: whether
    it has a picture that cannot be decoded."""

    key: str
    picture: Picture | None
    caption: str
    original: str | None
    garbled: bool = False


def tiles(shards: Sequence[Place], number: int, seed: int) -> list[Tile]:
    """So many samples, one at random of each equal share of the shards."""
    total = count(shards)
    wanted = min(number, total)
    bounds = np.arange(wanted + 1) * total // max(wanted, 1)
    places = np.random.default_rng(seed).integers(bounds[:-1], bounds[1:])
    fields = (*FIELDS["image"].members, "txt", "json")
    return list(read(shards, places, fields, _tile))


def _tile(key: str, raw: Raw) -> Tile:
    caption = text_of(raw)
    original = FIELDS["json"](raw).get("original_caption") if "json" in raw else None
    original = None if original == caption else original
    if not any(member in raw for member in FIELDS["image"].members):
        return Tile(key, None, caption, original)
    try:
        pixels = FIELDS["image"](raw)
    except SampleError:
        return Tile(key, None, caption, original, garbled=True)
    return Tile(key, _picture(pixels), caption, original)


def _picture(pixels: np.ndarray) -> Picture:
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/jpeg;base64,{data}", image.width, image.height)
