"""A trained network replicated on every rank (``parallel.backend: ddp``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stack.parallel.collectives import Ranks
from stack.parallel.local import LocalWeights

_BUCKET = 1 << 24
"""Elements averaged at once (64 MB): enough for full bandwidth, little beside the gradient."""


class ReplicatedWeights(LocalWeights):
    """Gradients are averaged over ranks once per iteration, just before they are clipped.

    Each backward adds to local gradients only, so accumulated micro-batches cost no
    communication, and replicas that start equal stay equal bit for bit: all ranks receive the
    same sums and take the same step.
    """

    def __init__(self, ranks: Ranks, *args: Any, **options: Any) -> None:
        """Args: ranks, then those of LocalWeights."""
        super().__init__(*args, **options)
        self.ranks = ranks

    def clip(self) -> Tensor:
        """Average over ranks, then clip; returns the norm before."""
        for bucket in self._buckets():
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            self.ranks.average_(flat)
            parts = flat.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        return super().clip()

    def _buckets(self) -> Iterator[list[Tensor]]:
        """The gradients, some at a time."""
        bucket: list[Tensor] = []
        size = 0
        for parameter in self.module.parameters():
            if parameter.grad is None:
                continue
            bucket.append(parameter.grad)
            size += parameter.grad.numel()
            if size >= _BUCKET:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket
