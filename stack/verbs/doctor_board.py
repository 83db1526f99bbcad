"""Where the ranks of the doctor leave word for each other: a store at the first rank, which
works where collectives do not."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from stack.util.errors import UserError

_POLL = 0.1
"""Seconds between two looks at the store."""


class Board:
    """Notes by name and rank; every rank writes its own and may read all."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.host = socket.gethostname()

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints."""
        return self.rank == 0

    @property
    def hashes(self) -> bool:
        """Whether this is the rank of its node that reads files whole to compare their checksums:
        all ranks at once could keep a file server from answering in time."""
        return os.environ.get("LOCAL_RANK", "0") == "0"

    @property
    def share(self) -> tuple[int, int]:
        """This rank's place among those of its node, and their number, as the launcher tells; one
        that does not has each rank do all."""
        place, number = (os.environ.get(f"LOCAL_{name}") for name in ("RANK", "WORLD_SIZE"))
        return (int(place), int(number)) if place and number else (0, 1)

    def write(self, name: str, value: Any) -> None:
        """Leave a note of JSON."""
        self.store.set(_key(name, self.rank), json.dumps(value))

    def read(self, name: str, rank: int, seconds: float) -> Any:
        """A rank's note.

        Raises:
            UserError: it has not come within so many seconds.
        """
        if self.absent(name, [rank], time.monotonic() + seconds):
            raise UserError(f"rank {rank}: silent for {seconds:.0f} s ({name})")
        return json.loads(self.store.get(_key(name, rank)))

    def read_all(self, name: str) -> dict[int, Any]:
        """The notes of that name that are there by now, by rank."""
        there = [r for r in range(self.world_size) if self.store.check([_key(name, r)])]
        return {rank: json.loads(self.store.get(_key(name, rank))) for rank in there}

    def absent(self, name: str, ranks: Sequence[int], deadline: float) -> list[int]:
        """Those of the ranks whose note has not come by a time of the monotonic clock."""
        left = list(ranks)
        while left := [rank for rank in left if not self.store.check([_key(name, rank)])]:
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL)
        return left


def _key(name: str, rank: int) -> str:
    return f"doctor/{name}/{rank}"


def open_board(patience: float) -> Board:
    """The board of the ranks that the launcher's environment describes.

    Args:
        patience: seconds to wait for the first rank.

    Raises:
        UserError: the environment is not whole, or there is no first rank.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Board(dist.HashStore(), 0, 1)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(
                f"${name}: not set, but WORLD_SIZE is {world_size}; see docs/parallel.md"
            )
    rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
    address = os.environ["MASTER_ADDR"]
    # torchrun keeps a store itself; there the first rank is a client like the others.
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = dist.TCPStore(
            address,
            port,
            is_master=serves,
            timeout=timedelta(seconds=patience),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"$MASTER_ADDR: {address}:{port}: rank {rank} on {socket.gethostname()} finds no "
            f"first rank there within {patience:.0f} s ({reason}); see that it runs and that its "
            "port is open"
        ) from None
    return Board(store, rank, world_size)
