"""Pictures with a class each, from shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stack.data.cache import ShardCache
from stack.evaluate.shards import read_all
from stack.util.errors import UserError


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
    parts = read_all(folders, ("image", "cls"), ("json",), cache)
    sizes = sorted({tuple(batch["image"].shape[-2:]) for batch in parts})
    if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
        told = " and ".join(f"{width}x{height}" for height, width in sizes[:2])
        raise UserError(f"{folders[0]}: image: {told}; all must be squares of one size")
    labels = torch.cat([batch["cls"] for batch in parts])
    if labels.min() < 0:
        raise UserError(f"{folders[0]}: cls: {int(labels.min())}: classes are numbers from 0")
    return Classed(torch.cat([batch["image"] for batch in parts]), labels, _names(parts, labels))


def _names(parts: Sequence[dict], labels: Tensor) -> tuple[str, ...]:
    found = {
        int(label): str(note["class"])
        for batch in parts
        for label, note in zip(batch["cls"].tolist(), batch.get("json", ()), strict=False)
        if "class" in note
    }
    return tuple(found.get(number, str(number)) for number in range(int(labels.max()) + 1))
