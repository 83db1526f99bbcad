"""The ranks of a job and what they tell each other; with one rank, nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stack.util.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks, and their collectives."""

    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over ranks; the argument is left alone."""
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.world_size == 1:
            return flag
        raised = torch.tensor(int(flag))
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised)

    def sum(self, *counts: int) -> list[int]:
        """Sums of counts over ranks."""
        if self.world_size == 1:
            return list(counts)
        total = torch.tensor(counts)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Everyone's value, in rank order, on every rank; any object that pickles."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def by_first(self, action: Callable[[], None]) -> None:
        """Let the first rank act while the others wait; its UserError is everyone's."""
        error = None
        if self.first:
            try:
                action()
            except UserError as caught:
                error = str(caught)
        error = self.gather(error)[0]
        if error:
            raise UserError(error)

    def barrier(self) -> None:
        """Wait for all."""
        if self.world_size > 1:
            dist.barrier()


ALONE = Ranks()


@contextmanager
def ranks_of(backend: str, *, timeout: float = 600.0) -> Iterator[Ranks]:
    """The ranks that the launcher's environment describes (torchrun, srun, launch.py).

    Args:
        backend: the recipe's parallel.backend. timeout: seconds a collective may take.

    Raises:
        UserError: several processes for a backend of one.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield ALONE
        return
    if backend == "none":
        raise UserError(
            f"parallel.backend: none is one process, but the launcher started {world_size}; "
            "set parallel.backend=ddp"
        )
    # Both, where there are GPUs: flags and Python objects are gathered on the CPU.
    kinds = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(kinds, timeout=timedelta(seconds=timeout))
    try:
        yield Ranks(dist.get_rank(), world_size)
    finally:
        dist.destroy_process_group()
