"""Rows of the input as download needs them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_prep.coyo import Rows

NEEDED = ("id", "url", "text")
_SIZE = 4096


@dataclass(frozen=True)
class Row:
    """`number` counts over all of the input; `about` are the columns but for the text."""

    number: int
    text: str
    about: dict[str, Any]

    @property
    def id(self) -> int | None:
        return self.about["id"]

    @property
    def url(self) -> str | None:
        return self.about["url"]

    @property
    def phash(self) -> str | None:
        return self.about.get("image_phash")


def part_of(total: int, part: tuple[int, int] | None) -> tuple[int, int]:
    """First row, and row after the last, of part k of n, k from 0; of all rows for None."""
    number, parts = part or (0, 1)
    return total * number // parts, total * (number + 1) // parts


def read(rows: Rows, start: int, stop: int, only: Collection[int] | None = None) -> Iterator[Row]:
    """Rows from `start` to before `stop`, in order; of these `only` some, if given."""
    wanted = None if only is None else set(only)
    for first, batch in rows.batches(rows.columns, start, stop, _SIZE):
        if wanted is not None and wanted.isdisjoint(range(first, first + len(batch))):
            continue
        columns = {name: _values(batch.column(name)) for name in rows.columns}
        for place in range(len(batch)):
            if wanted is None or first + place in wanted:
                about = {name: values[place] for name, values in columns.items()}
                yield Row(first + place, about.pop("text") or "", about)


def _values(column: pa.Array) -> list[Any]:
    """Python's values. Text may be no UTF-8, and numbers none that JSON has."""
    if pa.types.is_string(column.type):
        texts = column.cast(pa.binary()).to_pylist()
        return [text if text is None else text.decode(errors="replace") for text in texts]
    values = column.to_pylist()
    if pa.types.is_floating(column.type):
        return [value if value is None or math.isfinite(value) else None for value in values]
    return values
