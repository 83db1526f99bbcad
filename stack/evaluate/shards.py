"""Whole folders of shards in memory, each sample once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stack.data.batch import BatchLoader
from stack.data.cache import ShardCache
from stack.data.stream import ShardStream

_BATCH = 256


def read_all(
    folders: Sequence[str],
    fields: Sequence[str],
    optional: Sequence[str] = (),
    cache: ShardCache | None = None,
) -> list[dict[str, Any]]:
    """All samples in batches, in the shards' order by lots.

    Args:
        optional: fields to read too where all folders have them.

    Raises:
        UserError: the shards lack a field.
    """
    options: dict[str, Any] = {"lanes": 1, "seed": 0, "window": 1, "cache": cache}
    count = ShardStream(folders, global_batch=1, **options).steps_per_epoch
    size = max(divisor for divisor in range(1, _BATCH + 1) if count % divisor == 0)
    stream = ShardStream(folders, global_batch=size, **options)
    manifests = stream.manifests.values()
    found = [name for name in optional if all(manifest.holds(name) for manifest in manifests)]
    loader = iter(BatchLoader(stream, [*fields, *found]))
    return [next(loader) for _ in range(stream.steps_per_epoch)]
