"""Reading one shard: positioned reads through its index, every byte checked."""

from __future__ import annotations

import os
import tarfile
from typing import NamedTuple

import numpy as np
from zlib_ng.zlib_ng import crc32

from stack.data.index import ShardEntry, parse_index, split_member
from stack.data.storage import Folder
from stack.util.errors import UserError

Raw = dict[str, memoryview]
"""field -> bytes of one sample."""

_Read = tuple[list[str], np.ndarray]
"""Fields fetched by one read, and per row: where to read, how much, the crc32 of each field, the
start of each in what was read (-1: the sample lacks it), the size of each."""


class Span(NamedTuple):
    """One read that fetches several fields of a sample: `length` bytes at `offset` of the tar;
    per field its crc32; `layout`: per field its start in these bytes, then per field its size."""

    offset: int
    length: int
    crcs: list[int]
    layout: list[int]


_MAX_GAP = 16 << 10
"""Bytes read for nothing at most, where one read can stand for several."""


class SampleError(Exception):
    """One sample cannot be used: checksum or decoding. The reader puts another in its place."""


class Shard:
    """An open tar and its index. Reads are positioned (pread), so an open shard may be shared by
    threads and inherited by forked workers."""

    def __init__(self, folder: Folder, entry: ShardEntry) -> None:
        """UserError when the index is not the manifest's, or the tar is not the index's."""
        self.folder, self.path = folder, folder.file(entry.name)
        with folder.open(entry.index_name, entry.index_sha256) as file:
            self.index = parse_index(file.read(), entry, folder.file(entry.index_name))
        self.fields: tuple[str, ...] = (self.index.dtype.names or ())[1:]
        self._keys = np.ascontiguousarray(self.index["key"])
        self._plans: dict[tuple[str, ...], list[_Read]] = {}
        self._file = folder.open(entry.name, entry.sha256, entry.bytes)
        self.descriptor = self._file.fileno()
        try:
            self._check(entry)
        except BaseException:
            self.close()
            raise

    def _check(self, entry: ShardEntry) -> None:
        """The cheap part of telling a foreign tar: its size, its first and its last headers."""
        size = os.fstat(self.descriptor).st_size
        if size != entry.bytes:
            raise UserError(f"{self.path}: bytes: {size} on disk, {entry.bytes} in its manifest")
        for row in (0, -1):
            for field in self.fields:
                offset, length, _ = self.index[field][row].item()
                if offset and not self._has_member(offset, length, self.key(row), field):
                    raise UserError(
                        f"{self.path}: {self.key(row)}.{field}: not at byte {offset}, where "
                        f"{entry.index_name} has it; the index is of another tar"
                    )

    def _has_member(self, offset: int, length: int, key: str, field: str) -> bool:
        header = os.pread(self.descriptor, tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return False
        # A name of more than 100 bytes is cut in the header and whole in a record before it.
        whole = len(member.name.encode()) < tarfile.LENGTH_NAME
        return member.size == length and (not whole or split_member(member.name) == (key, field))

    def key(self, row: int) -> str:
        return self._keys[row].decode()

    def read(self, row: int, fields: tuple[str, ...]) -> Raw:
        """Those of `fields` that the sample has. SampleError when a checksum does not match."""
        raw: Raw = {}
        for names, table in self._planned(fields):
            n = len(names)
            begin, length, *rest = table[row].tolist()
            data = memoryview(os.pread(self.descriptor, length, begin))
            if len(data) != length:
                raise OSError(f"{len(data)} bytes came of {length} at byte {begin}")
            for name, checksum, start, size in zip(
                names, rest[:n], rest[n : 2 * n], rest[2 * n :], strict=True
            ):
                if start >= 0:
                    raw[name] = member = data[start : start + size]
                    if crc32(member) != checksum:
                        raise SampleError(f"{name}: crc32 does not match")
        return raw

    def span(self, row: int, fields: tuple[str, ...]) -> Span | None:
        """The one read that fetches all of the fields of a sample; None if it takes several."""
        plan = self._planned(fields)
        n = len(fields)
        if len(plan) != 1 or len(plan[0][0]) != n:
            return None
        offset, length, *rest = plan[0][1][row].tolist()
        return Span(offset, length, rest[:n], rest[n:])

    def reads(self, row: int, fields: tuple[str, ...]) -> list[tuple[int, int]]:
        """Offset and length of each read that `read` makes for a sample."""
        return [
            (offset, length)
            for _, table in self._planned(fields)
            for offset, length in [table[row, :2].tolist()]
        ]

    def _planned(self, fields: tuple[str, ...]) -> list[_Read]:
        if fields not in self._plans:
            self._plans[fields] = self._plan([name for name in fields if name in self.fields])
        return self._plans[fields]

    def _plan(self, names: list[str]) -> list[_Read]:
        """One read for all fields where they lie close together, else one for each."""
        if not names:
            return []
        places = np.stack([self.index[name] for name in names])
        offset, size = places["offset"], places["size"]
        end = (offset + size).max(axis=0)
        there = offset > 0
        begin = np.where(there, offset, end).min(axis=0)
        if len(names) > 1 and (end - begin > size.sum(axis=0) + _MAX_GAP).any():
            return [read for name in names for read in self._plan([name])]
        start = np.where(there, offset - begin, -1)
        return [(names, np.vstack([begin, end - begin, places["crc32"], start, size]).T.copy())]

    def keep(self, *, used: bool) -> bool:
        """Whether to keep the file open; `used`: whether it was just read."""
        return self.folder.keep(self._file, used=used)

    def close(self) -> None:
        self._file.close()
