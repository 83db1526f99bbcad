"""Of rows with equal keys, the first in the order of the input: for more rows than memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from data_prep.filter.scan import Span
from stack.util.files import named

_CHUNK = 2**20
_PART = 2_000_000
"""Rows of a partition, on the average; 24 bytes each, and as much again while they are sorted."""
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8")])


class Left:
    """Which rows of the spans are left, one bit each. Rows are numbered through, but each span
    begins at a multiple of 8, that is with a byte of its own."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = list(counts)
        sizes = [(count + 7) // 8 for count in counts]
        self.starts = np.cumsum([0, *sizes])
        self.bits = np.full(self.starts[-1], 0xFF, np.uint8)
        for number, count in enumerate(counts):
            if count % 8:
                self.bits[self.starts[number + 1] - 1] = (1 << count % 8) - 1

    def of(self, span: int) -> np.ndarray:
        """Which rows of a span are left."""
        packed = self.bits[self.starts[span] : self.starts[span + 1]]
        return np.unpackbits(packed, count=self.counts[span], bitorder="little").astype(bool)

    def count(self, span: int | None = None) -> int:
        """How many rows of a span, or of all, are left."""
        part = slice(None) if span is None else slice(self.starts[span], self.starts[span + 1])
        return int(np.bitwise_count(self.bits[part]).sum(dtype=np.int64))

    def chunks(self, spans: Sequence[Span]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers of the rows that are left, in order, and their keys."""
        for number, span in enumerate(spans):
            left, row = self.of(number), 0
            for keys in span.keys(_CHUNK):
                places = np.flatnonzero(left[row : row + len(keys)])
                yield self.starts[number] * 8 + row + places, keys[places]
                row += len(keys)

    def drop(self, rows: np.ndarray) -> int:
        """Take away rows by their numbers; returns how many."""
        np.bitwise_and.at(self.bits, rows >> 3, ~(1 << (rows & 7)).astype(np.uint8))
        return len(rows)


def drop_below(left: Left, spans: Sequence[Span], threshold: float | None) -> int:
    """Take away rows whose value is less, or missing; returns how many. Without a threshold no row
    has a value."""
    dropped = 0
    for rows, keys in left.chunks(spans):
        keep = keys["value"] >= (np.inf if threshold is None else threshold)
        dropped += left.drop(rows[~keep])
    return dropped


def drop_repeated(left: Left, spans: Sequence[Span], column: str, work: Path) -> int:
    """Take away rows whose hash of `column` an earlier row has; returns how many.

    Rows are spread over files by their hash, so that equal ones meet in one that fits in memory.
    """
    parts = -(-left.count() // _PART) or 1
    paths = [work / f"{column}.{part:04d}" for part in range(parts)]
    dropped = 0
    with named(work), ExitStack() as stack:
        files = [stack.enter_context(open(path, "wb")) for path in paths]
        for rows, keys in left.chunks(spans):
            records = np.empty(len(rows), _RECORD)
            records["high"], records["low"], records["row"] = *keys[column].T, rows
            # Within a chunk at once, lest one value that is everywhere fill a partition.
            first = _first(records)
            dropped += left.drop(rows[~first])
            records = records[first]
            order = np.argsort(records["high"] % parts, kind="stable")
            ends = np.cumsum(np.bincount(records["high"] % parts, minlength=parts))
            for file, part in zip(files, np.split(records[order], ends[:-1]), strict=True):
                file.write(part.tobytes())
    for path in paths:
        records = np.fromfile(path, _RECORD)
        dropped += left.drop(records["row"][~_first(records)].astype(np.int64))
        path.unlink()
    return dropped


def _first(records: np.ndarray) -> np.ndarray:
    """Which records are the first of their hash."""
    order = np.lexsort((records["low"], records["high"]))  # Stable: equal ones stay in order.
    high, low = records["high"][order], records["low"][order]
    first = np.ones(len(records), bool)
    first[order[1:][(high[1:] == high[:-1]) & (low[1:] == low[:-1])]] = False
    return first
