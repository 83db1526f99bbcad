"""Stage 3: the rows that are left, in the order of the input, to files of equal length."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.coyo import Rows
from data_prep.filter.dedupe import Left
from data_prep.filter.folder import FilterFolder, output_name
from data_prep.filter.scan import Span, regroup
from stack.util.files import fsync, named
from stack.util.progress import progress

_GROUP = 50_000
"""Most rows of a row group."""


def write(
    folder: FilterFolder, spans: Sequence[Span], left: Left, columns: Sequence[str], size: int
) -> None:
    """Write the files of `size` rows that are not there yet; each appears whole."""
    total = left.count()
    starts = range(0, total, size)
    there = len(folder.outputs())
    with progress("write", total=total, initial=min(there * size, total)) as bar:
        for number, start in list(enumerate(starts))[there:]:
            stop = min(start + size, total)
            _write_file(folder, output_name(number), _rows(spans, left, columns, start, stop))
            bar.advance(stop - start)


def _write_file(folder: FilterFolder, name: str, rows: Iterator[pa.RecordBatch]) -> None:
    part = folder.work / name
    groups = regroup(rows, _GROUP)
    first = next(groups)
    with named(part), pq.ParquetWriter(part, first.schema, compression="zstd") as writer:
        for group in chain([first], groups):
            writer.write_table(group)
    fsync(part)
    os.replace(part, folder.out / name)
    fsync(folder.out)


def _rows(
    spans: Sequence[Span], left: Left, columns: Sequence[str], start: int, stop: int
) -> Iterator[pa.RecordBatch]:
    """Of the rows that are left, those from number `start` to before `stop`."""
    after = 0
    for number, span in enumerate(spans):
        row, after = after, after + left.count(number)
        if after <= start or row >= stop:
            continue
        keep = pa.array(left.of(number))
        for first, batch in Rows.open(span.table, columns).batches(columns):
            found = batch.filter(keep.slice(first, len(batch)))
            low, high = max(start - row, 0), max(stop - row, 0)
            yield found.slice(low, max(high - low, 0))
            row += len(found)
            if row >= stop:
                return
