"""Pictures with a class each, from shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stack.data.batch import BatchLoader
from stack.data.cache import ShardCache
from stack.data.stream import ShardStream
from stack.util.errors import UserError

_BATCH = 250


@dataclass(frozen=True)
class Classed:
    """Real pictures: images uint8 (N, 3, S, S), labels int64 (N,), names of the classes (the
    numbers themselves where the shards' metadata tell none)."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]


def read_classes(folders: Sequence[str], cache: ShardCache | None = None) -> Classed:
    """All pictures of the folders with their classes, each once, in the shards' order by lots.

    Raises:
        UserError: the shards lack pictures or classes, or the pictures are of several sizes.
    """
    parts = list(_batches(folders, cache))
    sizes = sorted({tuple(batch["image"].shape[-2:]) for batch in parts})
    if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
        told = " and ".join(f"{width}x{height}" for height, width in sizes[:2])
        raise UserError(f"{folders[0]}: image: {told}; all must be squares of one size")
    labels = torch.cat([batch["cls"] for batch in parts])
    if labels.min() < 0:
        raise UserError(f"{folders[0]}: cls: {int(labels.min())}: classes are numbers from 0")
    return Classed(torch.cat([batch["image"] for batch in parts]), labels, _names(parts, labels))


def _batches(folders: Sequence[str], cache: ShardCache | None) -> list[dict]:
    options: dict[str, Any] = {"lanes": 1, "seed": 0, "window": 1, "cache": cache}
    count = ShardStream(folders, global_batch=1, **options).steps_per_epoch
    size = max(divisor for divisor in range(1, _BATCH + 1) if count % divisor == 0)
    stream = ShardStream(folders, global_batch=size, **options)
    fields = ["image", "cls"]
    if all(manifest.holds("json") for manifest in stream.manifests.values()):
        fields.append("json")
    loader = iter(BatchLoader(stream, fields))
    return [next(loader) for _ in range(stream.steps_per_epoch)]


def _names(parts: Sequence[dict], labels: Tensor) -> tuple[str, ...]:
    found = {
        int(label): str(note["class"])
        for batch in parts
        for label, note in zip(batch["cls"].tolist(), batch.get("json", ()), strict=False)
        if "class" in note
    }
    return tuple(found.get(number, str(number)) for number in range(int(labels.max()) + 1))
