"""`data_prep shards`: a parquet file with image bytes and captions into shards."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from data_prep.shards import Sample, ShardFolder, Tally, sole_writer
from stack.data.index import Manifest
from stack.util.errors import UserError
from stack.util.files import sha256_file
from stack.util.progress import progress

Row = dict[str, Any]

_EXTENSION = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


def shards_from_parquet(
    parquet: Path,
    out: Path,
    *,
    seed: int = 0,
    samples_per_shard: int = 1000,
    overwrite: bool = False,
    describe: Callable[[Row], Row] = lambda row: {},
) -> Manifest:
    """Write the rows of a parquet file, in a random order fixed by `seed`, as shards.

    Columns `image` (bytes of a PNG, JPEG or WebP file) and `text` are needed; the others, and what
    `describe` adds, become the sample's json; `id`, if there is one, its key. A row whose image
    cannot be read is left out, counted as `dropped`. The file is held in memory.
    """
    table = _read(parquet)
    origin = {
        "verb": "shards",
        "parquet": sha256_file(parquet),
        "seed": seed,
        "samples_per_shard": samples_per_shard,
    }
    with sole_writer(out):
        folder = ShardFolder(out, origin, overwrite=overwrite)
        return Manifest.read(out) if folder.finished else _write(folder, table, origin, describe)


def _write(
    folder: ShardFolder, table: pa.Table, origin: dict[str, Any], describe: Callable[[Row], Row]
) -> Manifest:
    seed, samples_per_shard = origin["seed"], origin["samples_per_shard"]
    order = np.argsort(np.random.Philox(key=seed).random_raw(len(table)), kind="stable")
    with progress("shards", total=len(table), initial=folder.samples) as bar:
        for number, start in enumerate(range(0, len(table), samples_per_shard)):
            name = f"{number:06d}.tar"
            part = order[start : start + samples_per_shard]
            if name not in folder.entries:
                tally = Tally()
                rows = table.take(pa.array(part)).to_pylist()
                folder.write(name, _samples(rows, part, describe, tally), tally)
                bar.advance(len(part))
    return folder.finish()


def _read(parquet: Path) -> pa.Table:
    try:
        table = pq.read_table(parquet)
    except FileNotFoundError:
        raise UserError(f"{parquet}: no such file") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{parquet}: not a parquet file ({error})") from None
    for column in ("image", "text"):
        if column not in table.column_names:
            raise UserError(f"{parquet}: {column}: no such column ({table.column_names})")
    if not pa.types.is_binary(table.schema.field("image").type):
        raise UserError(f"{parquet}: image: must be bytes of image files")
    kind = table.schema.field("text").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"{parquet}: text: must be strings, not {kind}")
    if not len(table):
        raise UserError(f"{parquet}: holds no rows")
    return table


def _samples(
    rows: list[Row], numbers: np.ndarray, describe: Callable[[Row], Row], tally: Tally
) -> Iterator[Sample]:
    for number, row in zip(numbers.tolist(), rows, strict=True):
        image, text = row.pop("image"), row.pop("text")
        key = f"{number:09d}" if row.get("id") is None else str(row["id"])
        try:
            with Image.open(io.BytesIO(image)) as opened:
                extension = _EXTENSION[str(opened.format)]
                tally.sizes[f"{opened.width}x{opened.height}"] += 1
        except (UnidentifiedImageError, KeyError, TypeError):
            tally.counts["dropped"] += 1
            continue
        about = {**row, **describe({**row, "text": text})}
        yield (
            # A dot would end the key, a slash would make a folder.
            key.replace(".", "_").replace("/", "_"),
            {
                extension: image,
                "txt": (text or "").encode(),
                "json": json.dumps(about, ensure_ascii=False, default=str).encode(),
            },
        )
