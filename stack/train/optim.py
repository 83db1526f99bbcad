"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from stack.parallel.adam import adam
from stack.parallel.ddp import ReplicatedWeights
from stack.parallel.fsdp import ShardedWeights, shard
from stack.parallel.local import LocalWeights, make_dense
from stack.parallel.mesh import ENGINES, Layout


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
    layout: Layout,
    *,
    blocks: Iterable[nn.Module] = (),
    methods: Sequence[str] = (),
    total: int,
    kind: str = "adamw",
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clip: float,
    warmup: int,
    decay: str,
) -> LocalWeights:
    """A network with its AdamW, laid over the ranks and ready to train for ``total`` steps.

    Args:
        blocks, methods: of the module, as :func:`stack.parallel.fsdp.shard` takes them.
        lr and what follows: the recipe's optim section of that network.
    """
    kept: dict[str, Any] = {"bf16": layout.bf16, "offload": layout.offload}
    if layout.sharded:
        shard(module, blocks, layout.mesh, methods=methods, **kept)
    elif kind != "adamw" and layout.backend != "fsdp":
        # bitsandbytes would do so in the first step; a resume begins in the layout it goes on in.
        make_dense(module)
    engine = ENGINES.get(layout.backend)
    optimizer = adam(
        kind,
        module.parameters(),
        sharded=layout.backend == "fsdp",  # On one rank too, which may go on from several.
        fused=engine is None,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
    )

    def lr_at(step: int) -> float:
        return lr * lr_factor(step, warmup=warmup, total=total, decay=decay)

    rest: dict[str, Any] = {"lr_at": lr_at, "max_norm": clip}
    ranks = layout.ranks
    if engine:
        from stack.parallel.zero import ZeroWeights

        return ZeroWeights(ranks, name, module, optimizer, **rest, stage=engine, **kept)
    if layout.sharded:
        return ShardedWeights(layout.micro_batches, name, module, optimizer, **rest)
    if ranks.world_size > 1:
        return ReplicatedWeights(ranks, name, module, optimizer, **rest)
    return LocalWeights(name, module, optimizer, **rest)
