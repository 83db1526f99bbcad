"""How the trained networks of a run are laid over its ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from stack.parallel.collectives import ALONE, Ranks
from stack.util.errors import UserError

ENGINES = {"zero1": 1, "zero2": 2, "zero3": 3}
"""Backends that are DeepSpeed's, and their stages."""


@dataclass(frozen=True)
class Layout:
    """What the recipe's parallel section asks for.

    Args:
        backend: none, ddp, fsdp or one of ENGINES.
        micro_batches: backwards of an iteration.
        shard_size: ranks that share one copy of the weights, with fsdp; all if None.
        bf16: the forward's weights are bfloat16 where a backend keeps them apart from the
            float32 ones.
        offload: sharded weights and their optimizer stay in the CPU's memory.
    """

    ranks: Ranks = ALONE
    backend: str = "none"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    micro_batches: int = 1
    shard_size: int | None = None
    bf16: bool = False
    offload: bool = False

    def __post_init__(self) -> None:
        if self.shard_size and self.ranks.world_size % self.shard_size:
            raise UserError(
                f"parallel.shard_size: {self.shard_size} does not divide the "
                f"{self.ranks.world_size} ranks"
            )

    @property
    def sharded(self) -> bool:
        """Whether FSDP cuts the weights; on one rank there is nothing to cut."""
        return self.backend == "fsdp" and self.ranks.world_size > 1

    @cached_property
    def mesh(self) -> DeviceMesh:
        """The ranks in a row, or as (replicas, ranks of a replica)."""
        world, size = self.ranks.world_size, self.shard_size or self.ranks.world_size
        kind = self.device.type
        if size == world:
            return init_device_mesh(kind, (world,), mesh_dim_names=("shard",))
        names = ("replicate", "shard")
        return init_device_mesh(kind, (world // size, size), mesh_dim_names=names)
