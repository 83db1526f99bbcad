"""`data_prep shards`: a parquet file with image bytes and captions into shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.pictures import Picture, write_pictures
from data_prep.shards import ShardFolder, sole_writer
from stack.data.index import Manifest
from stack.util.errors import UserError
from stack.util.files import sha256_file

Row = dict[str, Any]


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
    cannot be decoded is left out, counted as `dropped`. The file is held in memory.
    """
    table = read_parquet(parquet, ("image", "text"))

    def picture(number: int) -> Picture:
        row = row_of(table, number)
        image, text = row.pop("image"), row.pop("text")
        key = f"{number:09d}" if row.get("id") is None else str(row["id"])
        about = {**row, **describe({**row, "text": text})}
        return Picture(key, image, text or "", about=about)

    origin = {
        "verb": "shards",
        "parquet": sha256_file(parquet),
        "seed": seed,
        "samples_per_shard": samples_per_shard,
    }
    with sole_writer(out):
        folder = ShardFolder(out, origin, overwrite=overwrite)
        if folder.finished:
            return Manifest.read(out)
        return write_pictures(folder, picture, len(table))


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


_KINDS: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "image": (_is_bytes, "bytes of image files"),
    "label": (pa.types.is_integer, "integers"),
    "text": (_is_text, "strings"),
}
"""What suits a column, and how to say it."""


def read_parquet(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """A parquet file whose columns, `image`, `label` or `text`, are of the kinds that they must be.

    Raises:
        UserError: no such file, no parquet, no rows, a needed column is missing, or one of either
            list is of another kind.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a parquet file ({error})") from None
    for name in needed:
        if name not in table.column_names:
            raise UserError(f"{path}: {name}: no such column ({table.column_names})")
    for name in (*needed, *optional):
        suits, what = _KINDS[name]
        if name in table.column_names and not suits(kind := table.schema.field(name).type):
            raise UserError(f"{path}: {name}: must be {what}, not {kind}")
    if not len(table):
        raise UserError(f"{path}: holds no rows")
    return table


def row_of(table: pa.Table, number: int) -> Row:
    """One row by the names of its columns."""
    return table.slice(number, 1).to_pylist()[0]
