"""A trained network replicated on every rank (``parallel.backend: ddp``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stack.parallel.collectives import Ranks
from stack.parallel.local import LocalWeights


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
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        flat = self.ranks.all_reduce_mean(torch.cat([g.flatten() for g in gradients]))
        parts = flat.split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return super().clip()
