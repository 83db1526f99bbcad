"""Whole folders of shards, each sample once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
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
    """All batches of :func:`read_each`."""
    return list(read_each(folders, fields, optional, cache))


def read_each(
    folders: Sequence[str],
    fields: Sequence[str],
    optional: Sequence[str] = (),
    cache: ShardCache | None = None,
    retries: int = 6,
) -> Iterator[dict[str, Any]]:
    """All samples in batches, in the shards' order by lots.

    Args:
        optional: fields to read too where all folders have them. retries: as of ShardStream.

    Raises:
        UserError: the shards lack a field.
    """
    options: dict[str, Any] = {"lanes": 1, "seed": 0, "window": 1}
    options |= {"cache": cache, "retries": retries}
    count = ShardStream(folders, global_batch=1, **options).steps_per_epoch
    size = max(divisor for divisor in range(1, _BATCH + 1) if count % divisor == 0)
    stream = ShardStream(folders, global_batch=size, **options)
    manifests = stream.manifests.values()
    found = [name for name in optional if all(manifest.holds(name) for manifest in manifests)]
    return islice(BatchLoader(stream, [*fields, *found]), stream.steps_per_epoch)
