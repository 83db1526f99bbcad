"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW

from stack.parallel.collectives import Ranks
from stack.parallel.ddp import ReplicatedWeights
from stack.parallel.local import LocalWeights


def lr_factor(step: int, *, warmup: int, total: int, decay: str) -> float:
    """Share of the peak learning rate at ``step`` of ``total`` (both counted in this network's
    own steps): linear warmup, then constant, or linear or cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    match decay:
        case "linear":
            return 1 - done
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


def adam_weights(
    name: str,
    module: nn.Module,
    ranks: Ranks,
    *,
    total: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clip: float,
    warmup: int,
    decay: str,
) -> LocalWeights:
    """A network with its AdamW, ready to train for ``total`` steps; the other arguments are the
    recipe's optim section of that network."""
    optimizer = AdamW(
        module.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
    )

    def lr_at(step: int) -> float:
        return lr * lr_factor(step, warmup=warmup, total=total, decay=decay)

    if ranks.world_size > 1:
        return ReplicatedWeights(ranks, name, module, optimizer, lr_at=lr_at, max_norm=clip)
    return LocalWeights(name, module, optimizer, lr_at=lr_at, max_norm=clip)
