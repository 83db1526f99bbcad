"""`data_prep digits`: scikit-learn's scans of handwritten digits as coloured, captioned pictures.

Real data without a download: 1797 scans of 8x8, each drawn in six colours. Some captions leave the
digit or the colour open, so that a prompt such as "a red digit" has ten right answers.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.parquet import Row, shards_from_parquet
from stack.data.index import Manifest
from stack.util.errors import UserError
from stack.util.files import write_atomic

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (235, 40, 40),
    "green": (40, 205, 60),
    "blue": (60, 90, 255),
    "yellow": (245, 225, 40),
    "magenta": (225, 60, 225),
    "cyan": (40, 220, 225),
}

FULL, COLOUR_ONLY = 0.57, 0.38
"""Shares of captions with both attributes, and with the colour alone; the rest name the digit."""


def digits(
    out: Path,
    *,
    seed: int = 0,
    samples_per_shard: int = 1000,
    resolution: int = 32,
    overwrite: bool = False,
) -> Manifest:
    """Write OUT/digits.parquet and, from it, the shards OUT/shards."""
    if resolution < 8:
        raise UserError(f"--resolution: must be at least 8, the scans' own ({resolution})")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is not a folder")
    parquet = out / "digits.parquet"
    data = _parquet_bytes(seed, resolution)
    if parquet.exists() and parquet.read_bytes() != data and not overwrite:
        raise UserError(
            f"{parquet}: holds something else already; name a new folder or use --overwrite"
        )
    write_atomic(parquet, data)
    return shards_from_parquet(
        parquet,
        out / "shards",
        seed=seed,
        samples_per_shard=samples_per_shard,
        overwrite=overwrite,
        describe=stated,
    )


def stated(row: Row) -> Row:
    """Which attributes the caption gives."""
    words = row["text"].split()
    return {"states": [name for name in ("colour", "digit") if row[name] in words]}


def _parquet_bytes(seed: int, resolution: int) -> bytes:
    # Imported here: it takes two seconds, and no other verb needs it.
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    chance = np.random.Philox(key=seed).random_raw(len(scans) * len(COLOURS)) / 2.0**64
    ramp = np.arange(256)[:, None]
    shades = {name: (ramp * rgb // 255).astype(np.uint8) for name, rgb in COLOURS.items()}
    columns: dict[str, list] = {
        name: [] for name in ("id", "image", "text", "digit", "colour", "scan")
    }
    for scan, (pixels, label) in enumerate(zip(scans, labels, strict=True)):
        ink = _enlarge(pixels.reshape(8, 8), resolution)
        for colour in COLOURS:
            number = len(columns["id"])
            row = {
                "id": f"{number:06d}",
                "image": _png(ink, shades[colour]),
                "text": caption(DIGITS[label], colour, chance[number]),
                "digit": DIGITS[label],
                "colour": colour,
                "scan": scan,
            }
            for name, value in row.items():
                columns[name].append(value)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def caption(digit: str, colour: str, chance: float) -> str:
    """A caption that gives both attributes or one, chosen by `chance` in [0, 1)."""
    if chance < FULL:
        return f"a {colour} {digit}"
    if chance < FULL + COLOUR_ONLY:
        return f"a {colour} digit"
    return f"{'an' if digit == 'eight' else 'a'} {digit}"


def _enlarge(scan: np.ndarray, resolution: int) -> np.ndarray:
    """A scan with values 0..16 to ink 0..255 at (resolution, resolution), smoothly."""
    small = Image.fromarray(np.round(scan * (255 / 16)).astype(np.uint8))
    return np.asarray(small.resize((resolution, resolution), Image.Resampling.BICUBIC))


def _png(ink: np.ndarray, shades: np.ndarray) -> bytes:
    """Ink 0..255 in the shades (256, 3) of a colour, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(shades.take(ink, axis=0)).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
