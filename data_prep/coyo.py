"""COYO-700M's metadata: a folder of parquet files, read in order as one long table.

Columns as https://huggingface.co/datasets/kakaobrain/coyo-700m lists them. Their widths differ
between copies of the data set, so every batch is cast to the types below.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stack.util.errors import UserError

COLUMNS: dict[str, pa.DataType] = {
    "id": pa.int64(),
    "url": pa.string(),
    "text": pa.string(),
    "width": pa.int64(),
    "height": pa.int64(),
    "image_phash": pa.string(),
    "text_length": pa.int64(),
    "word_count": pa.int64(),
    "num_tokens_bert": pa.int64(),
    "num_tokens_gpt": pa.int64(),
    "num_faces": pa.int64(),
    "clip_similarity_vitb32": pa.float64(),
    "clip_similarity_vitl14": pa.float64(),
    "nsfw_score_opennsfw2": pa.float64(),
    "nsfw_score_gantman": pa.float64(),
    "watermark_score": pa.float64(),
    "aesthetic_score_laion_v2": pa.float64(),
}
"""The type that each column has in a batch. `image_phash`: 16 lower-case hex digits."""

_MAGIC = b"PAR1"
_BUFFER = 2**20
"""Bytes read ahead per column, instead of a whole column of a row group."""


@dataclass(frozen=True)
class _File:
    path: Path
    meta: pq.FileMetaData
    footer: bytes


@dataclass(frozen=True)
class Rows:
    """The rows of one or many parquet files, numbered through in the order of the files' names.

    Attributes:
        columns: those of COLUMNS that every file has, in that order.
        groups: (first row, row after the last) of every row group.
        total: rows in all files.
        fingerprint: SHA-256 over name, size and footer of every file.
    """

    files: tuple[Path, ...]
    columns: tuple[str, ...]
    groups: tuple[tuple[int, int], ...]
    total: int
    fingerprint: str
    _opened: tuple[_File, ...]

    @classmethod
    def open(cls, path: Path, needed: Sequence[str]) -> Rows:
        """Read the footers of a parquet file, or of all `*.parquet` in a folder.

        Raises:
            UserError: nothing there, a file that is no parquet file or is cut off, one that lacks
                a `needed` column, or has one of COLUMNS in a type that cannot be cast.
        """
        opened = tuple(_open(file) for file in _files(path))
        digest = hashlib.sha256()
        for file in opened:
            _check(file, needed)
            size = file.path.stat().st_size
            digest.update(f"{file.path.name}\n{size} {len(file.footer)}\n".encode() + file.footer)
        there = set.intersection(
            *(set(file.meta.schema.to_arrow_schema().names) for file in opened)
        )
        groups, start = [], 0
        for file in opened:
            for number in range(file.meta.num_row_groups):
                stop = start + file.meta.row_group(number).num_rows
                groups.append((start, stop))
                start = stop
        return cls(
            files=tuple(file.path for file in opened),
            columns=tuple(name for name in COLUMNS if name in there),
            groups=tuple(groups),
            total=start,
            fingerprint=digest.hexdigest(),
            _opened=opened,
        )

    def batches(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None, size: int = 65536
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The rows from `start` to before `stop` in order, at most `size` rows in a batch, each
        with the number of its first row. Row groups outside are not read.

        Raises:
            UserError: a file is damaged.
        """
        stop = self.total if stop is None else stop
        spans = iter(self.groups)
        for file in self._opened:
            inside = []
            for number in range(file.meta.num_row_groups):
                first, after = next(spans)
                if first < stop and start < after:
                    inside.append((number, first, after))
            if inside:
                yield from _read(file, inside, columns, (start, stop), size)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.glob("*.parquet") if file.is_file())
        if not files:
            raise UserError(f"{path}: no .parquet files in it; name the folder that holds them")
        return files
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder; name COYO's parquet files")
    return [path]


def _open(path: Path) -> _File:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 8, 0))
        tail = file.read()
        length = struct.unpack("<I", tail[:4])[0] if tail[4:] == _MAGIC else size
        if length + 12 > size:
            raise UserError(f"{path}: not a whole parquet file (cut off?); download it again")
        file.seek(size - 8 - length)
        footer = file.read()
    with _damage(path, "footer"):
        return _File(path, pq.read_metadata(path), footer)


def _check(file: _File, needed: Sequence[str]) -> None:
    with _damage(file.path, "footer"):
        schema = file.meta.schema.to_arrow_schema()
    for name in schema.names:
        if name in COLUMNS and schema.names.count(name) > 1:
            raise UserError(f"{file.path}: {name}: two columns have this name; leave one out")
    for name in needed:
        if name not in schema.names:
            raise UserError(
                f"{file.path}: {name}: no such column; it has {', '.join(schema.names)}"
            )
    for field in schema:
        wanted = COLUMNS.get(field.name)
        if wanted is not None and not _castable(field.name, field.type):
            kind = "text" if wanted == pa.string() else "numbers"
            raise UserError(
                f"{file.path}: {field.name}: must be {kind}, not {field.type}; "
                "convert the column or leave it out"
            )


def _castable(name: str, kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_null(kind):
        return True
    if COLUMNS[name] == pa.string():
        text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        return text or (name == "image_phash" and types.is_integer(kind))
    return types.is_integer(kind) or types.is_floating(kind)


def _read(
    file: _File,
    groups: Sequence[tuple[int, int, int]],
    columns: Sequence[str],
    wanted: tuple[int, int],
    size: int,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The wanted rows of row groups given as (number in the file, first row, row after)."""
    with pq.ParquetFile(
        file.path,
        metadata=file.meta,
        buffer_size=_BUFFER,
        pre_buffer=False,
        page_checksum_verification=True,
    ) as parquet:
        for number, row, after in groups:
            place, after = f"row group {number}", min(after, wanted[1])
            found = parquet.iter_batches(size, row_groups=[number], columns=list(columns))
            while row < after:
                batch = _next(file.path, place, found)
                if batch is None:
                    raise UserError(f"{file.path}: {place}: rows are missing; download it again")
                low, high = max(wanted[0] - row, 0), min(after - row, len(batch))
                if low < high:
                    with _damage(file.path, place):
                        wanted_rows = cast(batch.slice(low, high - low), columns)
                    yield row + low, wanted_rows
                row += len(batch)


def _next(path: Path, place: str, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    with _damage(path, place):
        return next(batches, None)


@contextmanager
def _damage(path: Path, place: str) -> Iterator[None]:
    """What Arrow says of bytes that it cannot decode, as one line. An OSError of the disk has a
    number and stays what it is."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: {place}: damaged ({reason}); download it again") from None


def cast(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """The columns, in this order, in the types of COLUMNS."""
    arrays = [_cast(name, batch.column(name)) for name in columns]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _cast(name: str, array: pa.Array) -> pa.Array:
    kind = COLUMNS[name]
    if name == "image_phash" and pa.types.is_integer(array.type):
        return phash_text(array)
    if kind == pa.string():
        valid = _valid(array.cast(kind))
        return pc.ascii_lower(valid) if name == "image_phash" else valid
    if kind == pa.int64() and pa.types.is_floating(array.type):
        # A column with holes that pandas wrote: NaN is a hole, too.
        array = pc.if_else(pc.is_finite(array), array, pa.scalar(None, array.type))
    # A fraction in a column of whole numbers is cut; a number that does not fit is an error.
    whole = pa.types.is_integer(array.type)
    return array if array.type == kind else array.cast(kind, safe=whole)


def _valid(texts: pa.Array) -> pa.Array:
    """Strings that are UTF-8 throughout; Arrow takes a file's word for it."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        raw = texts.cast(pa.binary()).to_pylist()
        return pa.array([None if value is None else utf8(value) for value in raw], pa.string())
    return texts


def utf8(raw: bytes) -> str:
    """Text from the web; what is not UTF-8 is replaced."""
    return raw.decode(errors="replace")


def phash_text(array: pa.Array) -> pa.Array:
    """Integers as 16 hex digits, of their two's complement when negative."""
    holes = array.is_null().to_numpy(zero_copy_only=False)
    signed = pa.types.is_signed_integer(array.type)
    wide = array.fill_null(0).cast(pa.int64() if signed else pa.uint64()).to_numpy()
    octets = wide.astype(">u8" if not signed else ">i8").view(np.uint8).reshape(-1, 8)
    digits = np.stack([octets >> 4, octets & 15], axis=2).reshape(-1)
    text = np.frombuffer(b"0123456789abcdef", np.uint8)[digits]
    offsets = np.arange(len(array) + 1, dtype=np.int32) * 16
    plain = pa.StringArray.from_buffers(
        len(array), pa.py_buffer(offsets.tobytes()), pa.py_buffer(text.tobytes())
    )
    return pc.if_else(pa.array(~holes), plain, pa.scalar(None, pa.string()))


def phash_numbers(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Phashes as uint64, and where they are 16 hex digits (elsewhere the number is 0)."""
    valid = pc.fill_null(pc.match_substring_regex(array, "^[0-9a-fA-F]{16}$"), False)
    keep = valid.to_numpy(zero_copy_only=False)
    text = b"".join(array.filter(valid).cast(pa.binary()).to_pylist())
    codes = np.frombuffer(text, np.uint8)
    nibbles = np.where(codes > 57, (codes | 32) - 87, codes - 48).astype(np.uint8).reshape(-1, 8, 2)
    octets = np.ascontiguousarray(nibbles[:, :, 0] << 4 | nibbles[:, :, 1])
    numbers = np.zeros(len(array), np.uint64)
    numbers[keep] = octets.view(">u8").reshape(-1)
    return numbers, keep
