"""``python -m tests.verbs.doctor_ranks FAULT RECIPE JSON``, once per rank: the doctor on ranks that
take themselves for nodes of their own, with a fault on the last of them."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import torch.distributed as dist

from stack.config.load import load_recipe
from stack.train import provenance
from stack.verbs import doctor_space
from stack.verbs.doctor import doctor

RANK, LAST = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]) - 1
DELAY = 0.3


def slow_link() -> None:
    """What this rank sends arrives late."""
    send = dist.send

    def late(*args: object) -> None:
        time.sleep(DELAY)
        send(*args)

    dist.send = late


def other_torch() -> None:
    """Another version is installed here."""
    version = provenance.version
    provenance.version = lambda name: "2.11.0" if name == "torch" else version(name)


def own_disk() -> None:
    """What the first rank writes does not show here."""
    doctor_space._SEEN = 0.2
    Path.is_file = lambda path: ".doctor-" not in path.name and os.path.isfile(path)


def absent() -> None:
    """This rank never comes."""
    sys.exit(0)


def dies() -> None:
    """This rank ends in the middle of its checks."""
    doctor_space.space = lambda *args: os._exit(0)


def bug() -> None:
    """A check of this rank raises what nobody expects."""
    doctor_space.space = lambda *args: 1 / 0


FAULTS = {f.__name__: f for f in (slow_link, other_torch, own_disk, absent, dies, bug)}


def main(fault: str, recipe: str, json_file: str) -> int:
    """The doctor's exit status."""
    socket.gethostname = lambda: f"node{RANK:02d}"
    if RANK == LAST and fault != "none":
        FAULTS[fault]()
    overrides = ["parallel.backend=ddp", "parallel.timeout=8"]
    return doctor(load_recipe(recipe, overrides), json_file=Path(json_file))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
