"""Other captions than the web's, for `data_prep captions`: of a field of the sample's json, or of a
parquet file keyed by id, such as a captioning model's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.shards import Sample
from stack.util.errors import UserError

Source = Callable[[Sample], str | None]
"""The other caption of a sample, if there is one."""


def from_json(field: str) -> Source:
    """The text in one field of a sample's json."""

    def caption(sample: Sample) -> str | None:
        value = _about(sample).get(field)
        return value if isinstance(value, str) else None

    return caption


def from_parquet(file: Path, column: str) -> Source:
    """The text of a parquet file with whole numbers in `id`, which samples have in their json. The
    file is held in memory, as much as its captions take and 8 bytes a row.

    Raises:
        UserError: the file cannot be read, lacks a column, or has one of another type.
    """
    table = _read(file, column)
    order = pc.sort_indices(table["id"])
    ids = table["id"].take(order).to_numpy().astype(np.int64)
    captions = table[column].take(order).combine_chunks()

    def caption(sample: Sample) -> str | None:
        wanted = _about(sample).get("id")
        if not isinstance(wanted, int):
            return None
        place = int(np.searchsorted(ids, wanted))
        return captions[place].as_py() if place < len(ids) and ids[place] == wanted else None

    return caption


def _about(sample: Sample) -> dict[str, Any]:
    return json.loads(sample[1].get("json", b"{}"))


def _read(file: Path, column: str) -> pa.Table:
    try:
        schema = pq.read_schema(file)
        for name, fits in (("id", pa.types.is_integer), (column, _is_text)):
            if name not in schema.names:
                raise UserError(f"{file}: {name}: no such column ({', '.join(schema.names)})")
            if not fits(kind := schema.field(name).type):
                wanted = "whole numbers" if name == "id" else "strings"
                raise UserError(f"{file}: {name}: must be {wanted}, not {kind}")
        table = pq.read_table(file, columns=["id", column])
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file}: not a whole parquet file ({error})") from None
    if table["id"].null_count:
        raise UserError(f"{file}: id: {table['id'].null_count} rows have none")
    return table


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
