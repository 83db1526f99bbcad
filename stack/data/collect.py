"""Collectors: from the samples of one batch, as the stream finds them, to the batch's tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from zlib_ng.zlib_ng import crc32

from stack.data.decode import FIELDS, npy_start
from stack.data.shard import Shard, Span
from stack.util.errors import UserError

Batch = dict[str, Any]


class Collector(Protocol):
    """The samples of one batch; a call is `stack.data.stream.Take`."""

    def __call__(self, shard: Shard, row: int, place: int) -> None: ...

    def batch(self) -> Batch:
        """What was collected, by field."""


def collector(fields: Sequence[str], samples: int) -> Collector:
    """The fastest collector for these of `FIELDS`, for a batch of so many samples."""
    if fields and all(FIELDS[name].is_array for name in fields):
        return Arrays(fields, samples)
    return Values(fields, samples)


def members_of(fields: Sequence[str]) -> tuple[str, ...]:
    """The members that any of the fields may be read from."""
    return tuple(member for name in fields for member in FIELDS[name].members)


class Values:
    """Any fields: every sample is decoded on its own; pictures and arrays go into one array of
    the whole batch at once, so that no batch is in memory twice."""

    def __init__(self, fields: Sequence[str], samples: int) -> None:
        self.fields, self.samples, self.members = list(fields), samples, members_of(fields)
        self.columns: list[Any] = []
        self.first = ""

    def __call__(self, shard: Shard, row: int, place: int) -> None:
        raw = shard.read(row, self.members)
        values = [FIELDS[name](raw) for name in self.fields]
        if not self.columns:
            self.first = shard.key(row)
            self.columns = [self._column(value) for value in values]
        for name, column, value in zip(self.fields, self.columns, values, strict=True):
            if isinstance(column, np.ndarray):
                check_alike(name, column[0], self.first, value, shard.key(row))
            column[place] = value

    def _column(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return np.empty((self.samples, *value.shape), value.dtype)
        return [None] * self.samples

    def batch(self) -> Batch:
        named = zip(self.fields, self.columns, strict=True)
        return {name: FIELDS[name].stack(column) for name, column in named}


class _Piece:
    """An array's part of one read: buffers for the gap before it and for its npy header, which
    must be `header`, whose crc32 is `crc`; `number` of its field."""

    def __init__(self, array: np.ndarray, number: int, gap: int, header: bytes) -> None:
        self.array, self.number = array, number
        self.gap, self.head = bytearray(gap), bytearray(len(header))
        self.header, self.crc = header, crc32(header)


class Arrays:
    """Fields that are npy files: each array's bytes go straight to their place in the batch.

    The first sample is decoded, and tells how the others should lie in their tars. One that
    lies otherwise, or whose checksum does not match, is decoded like the first.
    """

    def __init__(self, fields: Sequence[str], samples: int) -> None:
        self.fields, self.samples = list(fields), samples
        self.members = members_of(fields)
        self.arrays: list[np.ndarray] = []

    def __call__(self, shard: Shard, row: int, place: int) -> None:
        if not (self.arrays and self._read_direct(shard, row, place)):
            self._decode(shard, row, place)

    def _decode(self, shard: Shard, row: int, place: int) -> None:
        raw = shard.read(row, self.members)
        values = [FIELDS[name](raw) for name in self.fields]
        if not self.arrays:
            self.arrays = [np.empty((self.samples, *v.shape), v.dtype) for v in values]
            self.first = shard.key(row)
            self._learn(shard.span(row, self.members), raw)
        for name, array, value in zip(self.fields, self.arrays, values, strict=True):
            check_alike(name, array[0], self.first, value, shard.key(row))
            array[place] = value

    def _learn(self, span: Span | None, raw: Mapping[str, memoryview]) -> None:
        """How a sample lies in its tar: before each array the gap to it and its npy header."""
        self.pieces: list[_Piece] = []
        self.layout = span.layout if span else None
        if not span:
            return
        end = 0
        for number in sorted(range(len(self.members)), key=span.layout.__getitem__):
            start, member = span.layout[number], raw[self.members[number]]
            header = bytes(member[: npy_start(member)])
            self.pieces.append(_Piece(self.arrays[number], number, start - end, header))
            end = start + len(member)

    def _read_direct(self, shard: Shard, row: int, place: int) -> bool:
        """Whether the sample was of the known layout and whole, and is now in its place."""
        span = shard.span(row, self.members)
        if not span or span.layout != self.layout:
            return False
        targets = [piece.array[place : place + 1] for piece in self.pieces]
        buffers: list[Any] = []
        for piece, target in zip(self.pieces, targets, strict=True):
            buffers += (piece.gap, piece.head, target)
        if os.preadv(shard.descriptor, buffers, span.offset) != span.length:
            return False
        return all(
            piece.head == piece.header and crc32(target, piece.crc) == span.crcs[piece.number]
            for piece, target in zip(self.pieces, targets, strict=True)
        )

    def batch(self) -> Batch:
        arrays: list[Any] = self.arrays
        named = zip(self.fields, arrays, strict=True)
        return {name: FIELDS[name].stack(array) for name, array in named}


def check_alike(name: str, one: np.ndarray, key: str, other: np.ndarray, its_key: str) -> None:
    """UserError unless two samples' arrays have one shape and type."""
    if one.shape != other.shape or one.dtype != other.dtype:
        raise UserError(
            f"{name}: samples of one batch differ in shape or type: {key} has {one.shape} "
            f"{one.dtype}; {its_key} has {other.shape} {other.dtype}"
        )
