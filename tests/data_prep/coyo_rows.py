"""Small tables with COYO's columns, made up: every row passes the default filter rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.coyo import COLUMNS


def columns(count: int, first: int = 0, **changes: Any) -> dict[str, Any]:
    """`count` rows from number `first` on. `changes`: whole columns, or {row: value}."""
    numbers = np.arange(first, first + count)
    table: dict[str, Any] = {
        "id": numbers,
        "url": [f"https://example.com/pictures/{n}.jpg" for n in numbers],
        "text": [f"a photo of thing {n}" for n in numbers],
        "width": np.full(count, 640),
        "height": np.full(count, 512),
        "image_phash": [f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}" for n in numbers.tolist()],
        "text_length": np.full(count, 20),
        "word_count": np.full(count, 5),
        "num_tokens_bert": np.full(count, 6),
        "num_tokens_gpt": np.full(count, 6),
        "num_faces": np.zeros(count, np.int64),
        "clip_similarity_vitb32": np.full(count, 0.3),
        "clip_similarity_vitl14": np.full(count, 0.25),
        "nsfw_score_opennsfw2": np.full(count, 0.01),
        "nsfw_score_gantman": np.full(count, 0.02),
        "watermark_score": np.full(count, 0.05),
        "aesthetic_score_laion_v2": np.full(count, 5.5),
    }
    for name, change in changes.items():
        if isinstance(change, dict):
            values = list(table[name])
            for row, value in change.items():
                values[row] = value
            table[name] = values
        else:
            table[name] = change
    return table


def make(count: int, first: int = 0, **changes: Any) -> pa.Table:
    """`columns` as a table in the types of the data set."""
    made = columns(count, first, **changes)
    arrays = {
        name: column if isinstance(column, pa.Array) else pa.array(column, COLUMNS.get(name))
        for name, column in made.items()
    }
    return pa.table(arrays)


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    """Write a parquet file, its folder as well if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def random_table(count: int, seed: int, first: int = 0) -> pa.Table:
    """Rows of which every rule drops some, with repeated URLs and phashes."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(first, first + count)
    plain = make(count, first)
    urls, phashes = (_some_repeated(plain[name], rng) for name in ("url", "image_phash"))
    return make(
        count,
        first,
        url=urls,
        image_phash=phashes,
        text=[None if n % 50 == 7 else f"caption {n} of a thing" for n in numbers.tolist()],
        width=rng.integers(400, 1200, count),
        height=rng.integers(400, 1200, count),
        word_count=rng.integers(1, 80, count),
        clip_similarity_vitl14=rng.normal(0.25, 0.05, count),
        nsfw_score_opennsfw2=rng.beta(0.3, 3, count),
        watermark_score=rng.beta(0.5, 4, count),
        aesthetic_score_laion_v2=rng.normal(5.3, 0.6, count),
    )


def _some_repeated(column: pa.ChunkedArray, rng: np.random.Generator) -> list[str]:
    """The column with a tenth of its values replaced by others of it."""
    places = np.arange(len(column))
    other = rng.integers(0, len(column), len(column))
    return column.take(np.where(rng.random(len(column)) < 0.1, other, places)).to_pylist()
