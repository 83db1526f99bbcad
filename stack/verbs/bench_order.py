"""``stack bench order``: how well the order of samples is shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from stack.data.lanes import CanonicalLanes
from stack.util.files import write_json


def bench_order(
    *,
    shards: int,
    samples: int,
    batch: int,
    lanes: Sequence[int],
    windows: Sequence[int],
    json_file: Path | None,
) -> None:
    """Walk one epoch of a dataset that is sorted by label, a label a shard, for every number of
    lanes and every window, and of a full shuffle. Prints a table.

    Args:
        shards, samples: of the dataset, and of each shard. batch: the global batch.
    """
    sizes = [samples] * shards
    rows: list[dict[str, Any]] = []
    for count in lanes:
        for window in windows:
            options: dict[str, Any] = {"global_batch": batch, "lanes": count, "window": window}
            walk = CanonicalLanes([sizes], seed=0, **options)
            steps = [walk.locate(step) for step in range(walk.steps_per_epoch)]
            order = np.stack([shard * samples + row for shard, row in steps])
            layout = {"lanes": count, "places": order.size // count, "window": window}
            rows.append(layout | quality(order, samples))
    full = np.random.default_rng(0).permutation(shards * samples)
    full = full[: len(full) // batch * batch].reshape(-1, batch)
    layout = {"lanes": 0, "places": full.size, "window": full.size}
    rows.append(layout | quality(full, samples))
    if json_file:
        write_json(json_file, {"shards": shards, "samples": samples, "batch": batch, "rows": rows})
    _print(f"{shards} shards of {samples} samples, batches of {batch}", rows)


def quality(order: np.ndarray, samples: int) -> dict[str, float]:
    """Figures of one epoch.

    Args:
        order: (steps, batch) numbers of the samples as they lie in the dataset. samples: of a
            shard; a sample's label is its shard.

    Returns: `rank_correlation`, Spearman's, between a sample's place in its shard and the step
    at which it comes, mean over shards (1: as it lies, 0: shuffled); `label_entropy` of a batch
    in bits, mean over steps; `neighbours`, the share of a batch's samples whose follower in the
    dataset is in the same or the next batch.
    """
    steps, batch = order.shape
    step_of = np.full(order.max() + 1, -1)
    step_of[order] = np.arange(steps)[:, None]
    numbers = np.flatnonzero(step_of >= 0)
    by_shard = np.split(numbers, np.flatnonzero(np.diff(numbers // samples)) + 1)
    correlations = [_spearman(step_of[part]) for part in by_shard]
    labels = np.stack([np.bincount(row // samples, minlength=len(by_shard)) for row in order])
    share = labels / batch
    entropy = -(share * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum(axis=1)
    apart = np.diff(step_of[numbers])
    return {
        "rank_correlation": float(np.mean(correlations)),
        "label_entropy": float(entropy.mean()),
        "neighbours": float(((apart == 0) | (apart == 1)).mean()),
    }


def _spearman(steps: np.ndarray) -> float:
    """Of the steps with their order; 0 where all are equal."""
    _, inverse, counts = np.unique(steps, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    if len(counts) == 1:
        return 0.0
    return float(np.corrcoef(np.arange(len(steps)), ranks)[0, 1])


def _print(title: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title, caption="a label a shard; places: of a lane")
    for column in ("lanes", "places", "window", "rank corr.", "label bits", "neighbours"):
        table.add_column(column, justify="right")
    for row in rows:
        names = ("lanes", "places", "window")
        layout = [str(row[name]) for name in names] if row["lanes"] else ["full", "", "shuffle"]
        figures = (f"{row[name]:.3f}" for name in ("rank_correlation", "label_entropy"))
        table.add_row(*layout, *figures, f"{row['neighbours']:.1%}")
    Console(highlight=False).print(table)
