"""Stage 1: the input, read once, to the rows that pass every rule about a row alone.

The input is cut into spans of whole row groups. Of each span, `work` gets the rows that pass as
FIRST-AFTER.parquet, what the next stage must know of them as FIRST-AFTER.keys, and last the counts
as FIRST-AFTER.json, with which the span is done.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.blocklist import Blocklist, canonicals
from data_prep.coyo import COLUMNS, Rows
from data_prep.filter.rules import Rules, values_of
from stack.util.files import fsync, named, read_json, write_json
from stack.util.progress import progress

SPAN = 2_000_000
"""Rows of a span, or more where row groups are longer: what a killed run reads again at most."""
_GROUP = 50_000
"""Rows of a row group in `work`."""

KEYS = np.dtype([("value", "<f8"), ("url", "<u8", 2), ("image_phash", "<u8", 2)])
"""Of a row: the value that is ranked, and 128-bit hashes of what must not come twice."""


@dataclass(frozen=True)
class Span:
    """The rows that are left of a span of the input.

    Attributes:
        path: without the suffix.
        kept: how many there are.
    """

    path: Path
    kept: int

    @property
    def table(self) -> Path:
        return self.path.with_suffix(".parquet")

    def keys(self, size: int) -> Iterator[np.ndarray]:
        """Their KEYS, `size` at a time."""
        with open(self.path.with_suffix(".keys"), "rb") as file:
            while len(chunk := np.fromfile(file, KEYS, size)):
                yield chunk


def scan(
    rows: Rows, rules: Rules, blocked: Blocklist, work: Path
) -> tuple[list[Span], Counter[str]]:
    """Do the spans that are not done; returns all, and rows dropped by rule."""
    work.mkdir(exist_ok=True)
    schema = pa.schema([(name, COLUMNS[name]) for name in rows.columns])
    spans: list[Span] = []
    dropped = Counter[str]()
    with progress("scan", total=rows.total) as bar:
        for start, stop in spans_of(rows.groups):
            path = work / f"{start:012d}-{stop:012d}"
            done = path.with_suffix(".json")
            if not done.exists():
                found = rows.batches(rows.columns, start, stop)
                write_json(done, _scan_span(found, schema, rules, blocked, path))
            counts = read_json(done)
            spans.append(Span(path, stop - start - sum(counts.values())))
            dropped.update(counts)
            bar.advance(stop - start, left=sum(span.kept for span in spans))
    pa.default_memory_pool().release_unused()  # Arrow keeps what the batches took.
    return spans, dropped


def spans_of(groups: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Row groups, given as (first row, row after the last), joined to spans."""
    start = 0
    for number, (_, stop) in enumerate(groups, 1):
        if stop - start >= SPAN or number == len(groups):
            yield start, stop
            start = stop


def _scan_span(
    batches: Iterator[tuple[int, pa.RecordBatch]],
    schema: pa.Schema,
    rules: Rules,
    blocked: Blocklist,
    path: Path,
) -> Counter[str]:
    """Write the rows of a span that pass, and their keys; returns rows dropped by rule."""
    dropped = Counter[str]()
    table, keys = path.with_suffix(".parquet"), path.with_suffix(".keys")

    def passing(file: BinaryIO) -> Iterator[pa.RecordBatch]:
        for _, batch in batches:
            left = batch.filter(pa.array(_judge(batch, rules, blocked, dropped)))
            file.write(_keys(left, rules).tobytes())
            yield left

    with (
        named(table),
        open(keys, "wb") as file,
        pq.ParquetWriter(table, schema, compression="lz4") as writer,
    ):
        for group in regroup(passing(file), _GROUP):
            writer.write_table(group)
    fsync(keys)
    fsync(table)
    return dropped


def _judge(
    batch: pa.RecordBatch, rules: Rules, blocked: Blocklist, dropped: Counter[str]
) -> np.ndarray:
    """Which rows pass; adds the others to `dropped`."""
    left = np.ones(len(batch), bool)
    for name, passes in rules.checks(batch, blocked):
        dropped[name] += int(np.count_nonzero(left & ~passes))
        left &= passes
    return left


def _keys(batch: pa.RecordBatch, rules: Rules) -> np.ndarray:
    keys = np.zeros(len(batch), KEYS)
    if rules.ranked:
        keys["value"] = values_of(batch, rules.ranked[0])
    for column in rules.keys:
        texts = batch.column(column)
        hashed = canonicals(texts) if column == "url" else texts
        keys[column] = _hashes(hashed)
    return keys


def _hashes(texts: pa.Array) -> np.ndarray:
    """128-bit hashes, which do not collide in practice: 1e9 texts have odds of 1e-21."""
    raw = texts.cast(pa.binary()).to_pylist()
    joined = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in raw)
    return np.frombuffer(joined, "<u8").reshape(-1, 2)


def regroup(batches: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of `size` rows, the last with fewer, each column in one chunk: how a
    table is cut shows in the bytes of a parquet file."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while len(batch):
            part = batch.slice(0, size - count)
            batch = batch.slice(len(part))
            held.append(part)
            count += len(part)
            if count == size:
                yield pa.Table.from_batches(held).combine_chunks()
                held, count = [], 0
    if held:
        yield pa.Table.from_batches(held).combine_chunks()
