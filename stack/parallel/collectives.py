"""The ranks of a job and what they tell each other; with one rank, nothing."""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stack.util.errors import PeerLostError, UserError

_BROKEN = re.compile(
    r"closed by peer|reset by peer|Broken pipe|[Tt]imed out|Connection refused|no rank \d"
    r"|ncclRemoteError|ncclSystemError|NCCL communicator was aborted"
)
"""What the backends say when another rank is gone."""
_COLLECTIVE = re.compile(r"(all_|foreach_|_)*(reduce|gather|scatter|broadcast|barrier)\w*")


class WaitClock:
    """Seconds that this rank spends in collectives, where it waits for the slowest.

    Attributes:
        seconds: since the last reset. exact: whether a GPU's own work is waited for first, so that
            it does not count; costs a little time.
    """

    def __init__(self) -> None:
        self.seconds, self.exact = 0.0, False

    def reset(self, *, exact: bool) -> None:
        """Begin again at 0."""
        self.seconds, self.exact = 0.0, exact

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self._settle()
        start = time.perf_counter()
        yield
        self._settle()
        self.seconds += time.perf_counter() - start

    def _settle(self) -> None:
        if self.exact and torch.cuda.is_available():
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks, and their collectives in one process group."""

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None
    """None for the group of all that training uses."""
    timeout: float = 600.0
    """Seconds a collective may take."""
    clock: WaitClock = field(default_factory=WaitClock, repr=False, compare=False)
    """Of this group's collectives."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over ranks; the argument is left alone."""
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        self.average_(total)
        return total

    def average_(self, value: Tensor) -> None:
        """Mean of a tensor over ranks, in place."""
        with self.clock():
            dist.all_reduce(value, group=self.group)
        value /= self.world_size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.world_size == 1:
            return flag
        raised = torch.tensor(int(flag))
        with self.clock():
            dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.group)
        return bool(raised)

    def sum(self, *counts: int) -> list[int]:
        """Sums of counts over ranks."""
        if self.world_size == 1:
            return list(counts)
        total = torch.tensor(counts)
        with self.clock():
            dist.all_reduce(total, group=self.group)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Everyone's value, in rank order, on every rank; any object that pickles."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        with self.clock():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def by_first(self, action: Callable[[], None]) -> None:
        """Let the first rank act while the others wait; what its disk or its UserError says is
        everyone's UserError."""
        error = None
        if self.first:
            try:
                action()
            except UserError as caught:
                error = str(caught)
            except OSError as caught:
                error = f"{caught.filename or 'disk'}: {caught.strerror or caught}"
        error = self.gather(error)[0]
        if error:
            raise UserError(error)

    def barrier(self) -> None:
        """Wait for all."""
        if self.world_size > 1:
            dist.barrier(group=self.group)

    def apart(self) -> Ranks:
        """The same ranks in a group of their own on the CPU, for a thread beside training's:
        collectives of two threads in one group would meet each other's."""
        if self.world_size == 1:
            return self
        limit = timedelta(seconds=self.timeout)
        group = dist.new_group(backend="gloo", timeout=limit)
        return replace(self, group=group, clock=WaitClock())


ALONE = Ranks()


@contextmanager
def ranks_of(backend: str, *, timeout: float = 600.0) -> Iterator[Ranks]:
    """The ranks that the launcher's environment describes (torchrun, srun, launch.py).

    Args:
        backend: the recipe's parallel.backend. timeout: seconds a collective may take.

    Raises:
        UserError: several processes for a backend of one.
        PeerLostError: inside, another rank's end or silence broke a collective.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    engines = backend.startswith("zero")
    if world_size == 1 and not engines:
        yield ALONE
        return
    if backend == "none":
        raise UserError(
            f"parallel.backend: none is one process, but the launcher started {world_size}; "
            "set parallel.backend=ddp"
        )
    # Both, where there are GPUs: flags and Python objects are gathered on the CPU.
    kinds = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    place: dict[str, Any] = {}
    if "WORLD_SIZE" not in os.environ:  # DeepSpeed wants a group even of one.
        place = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(kinds, timeout=timedelta(seconds=timeout), **place)
    try:
        yield Ranks(dist.get_rank(), world_size, timeout=timeout)
    except RuntimeError as error:
        told = lost_peer(error)
        if told is None:
            raise
        raise PeerLostError(f"{told}; start again with --resume") from error
    finally:
        dist.destroy_process_group()


def lost_peer(error: BaseException) -> str | None:
    """What to say of an error that a rank's end or silence caused in a collective of another;
    None for any other error."""
    gone = dist.DistNetworkError | dist.DistStoreError
    broken = isinstance(error, gone) or _BROKEN.search(str(error))
    if not (isinstance(error, RuntimeError) and broken):
        return None
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    found = next(filter(_COLLECTIVE.fullmatch, reversed(names)), "a collective")
    reason = re.sub(r"^\[[^\]]*\] ?", "", str(error).splitlines()[0])
    return f"{found.strip('_')}: a rank is gone or silent ({reason})"
