"""Collectors: from the samples of one batch, as the stream finds them, to the batch's tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Protocol

import numpy as np
from zlib_ng.zlib_ng import crc32

from stack.data.decode import FIELDS, npy_start
from stack.data.shard import Shard
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
    return Values(fields)


def members_of(fields: Sequence[str]) -> tuple[str, ...]:
    """The members that any of the fields may be read from."""
    return tuple(member for name in fields for member in FIELDS[name].members)


class Values:
    """Any fields: every sample is decoded on its own, then the values are stacked."""

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields, self.members = list(fields), members_of(fields)
        self.rows: list[list[Any]] = []
        self.keys: list[str] = []

    def __call__(self, shard: Shard, row: int, place: int) -> None:
        raw = shard.read(row, self.members)
        self.rows.append([FIELDS[name](raw) for name in self.fields])
        self.keys.append(shard.key(row))

    def batch(self) -> Batch:
        columns = dict(zip(self.fields, zip(*self.rows, strict=True), strict=True))
        for name, values in columns.items():
            _check_alike(name, dict(zip(map(_kind, values), self.keys, strict=True)))
        return {name: FIELDS[name].stack(values) for name, values in columns.items()}


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
            _check_alike(name, {_kind(array[0]): self.first, _kind(value): shard.key(row)})
            array[place] = value

    def _learn(self, span: list[int], raw: Mapping[str, memoryview]) -> None:
        """Lay out the buffers of one sample: before each array the gap to it and its header."""
        self.layout = _layout(span)
        self.pieces, end = [], 0
        for start, number, member in sorted(zip(span[2::3], count(), self.members)):
            header = bytes(raw[member][: npy_start(raw[member])])
            buffers = bytearray(start - end), bytearray(len(header))
            self.pieces.append((*buffers, header, crc32(header), 4 + 3 * number))
            end = start + len(raw[member])
        self.in_order = [self.arrays[(crc - 4) // 3] for *_, crc in self.pieces]

    def _read_direct(self, shard: Shard, row: int, place: int) -> bool:
        """Whether the sample was of the known layout and whole, and is now in its place."""
        span = shard.span(row, self.members)
        if not span or _layout(span) != self.layout:
            return False
        targets = [array[place : place + 1] for array in self.in_order]
        buffers: list[Any] = []
        for (gap, head, *_), target in zip(self.pieces, targets, strict=True):
            buffers += (gap, head, target)
        if os.preadv(shard.descriptor, buffers, span[0]) != span[1]:
            return False
        for (_, head, header, start, crc), target in zip(self.pieces, targets, strict=True):
            if head != header or crc32(target, start) != span[crc]:
                return False
        return True

    def batch(self) -> Batch:
        arrays: list[Any] = self.arrays
        named = zip(self.fields, arrays, strict=True)
        return {name: FIELDS[name].stack(array) for name, array in named}


def _layout(span: list[int]) -> list[int]:
    """What of `Shard.span` two samples that lie alike share: all but offset and checksums."""
    return span[1:4] + span[5::3] + span[6::3]


def _kind(value: Any) -> str:
    """What all of a batch must have in common: shape and type of an array."""
    return f"{value.shape} {value.dtype}" if isinstance(value, np.ndarray | np.generic) else ""


def _check_alike(name: str, kinds: Mapping[str, str]) -> None:
    """UserError for more than one kind among samples, given as kind to key."""
    if len(kinds) > 1:
        seen = "; ".join(f"{key} has {kind}" for kind, key in sorted(kinds.items()))
        raise UserError(f"{name}: samples of one batch differ in shape or type: {seen}")
