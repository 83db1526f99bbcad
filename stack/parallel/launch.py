"""Several ranks of one command on this machine, for a laptop; clusters use srun or torchrun."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

from stack.util import exits

_GRACE = 30.0
"""Seconds the other ranks have to end by themselves once one has failed."""


def launch(processes: int, command: Sequence[str]) -> int:
    """Run ``command`` once per rank and wait; the first rank owns the terminal.

    Signals to this process go to every rank; a rank that fails takes the others with it, and
    what it said is shown unless the first rank, on the terminal, failed in the same way.

    Returns: the exit status of the rank whose failure explains the others', or 0.
    """
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(1, processes)]
        children = _start(processes, command, [None, *logs])
        failed = _wait(children)
        code = children[failed].returncode
        if children[0].returncode != code:
            log = logs[failed - 1]
            log.seek(0)
            shutil.copyfileobj(log, sys.stderr)
    return code


def _start(
    processes: int, command: Sequence[str], outputs: Sequence[IO[str] | None]
) -> list[subprocess.Popen[bytes]]:
    """The ranks, each with a share of the cores, unless the environment says how many threads."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    return [
        subprocess.Popen(
            command,
            env=threads | os.environ | place,
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,
            start_new_session=True,
        )
        for place, output in zip(places(processes), outputs, strict=True)
    ]


def places(processes: int) -> list[dict[str, str]]:
    """What torch.distributed reads from each rank's environment, as torchrun has it; all ranks are
    on this machine, and the port is one that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """The rank whose failure explains the others', once all have ended, or 0 if none has failed;
    signals to this process go to the ranks meanwhile."""

    def forward(number: int, frame: object) -> None:
        for child in children:
            child.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, forward) for number in numbers}
    deadline = float("inf")
    failed: int | None = None
    try:
        while None in (codes := [child.poll() for child in children]):
            if failed is None and any(codes):
                failed = next(rank for rank, code in enumerate(codes) if code)
                deadline = time.monotonic() + _GRACE
            if time.monotonic() > deadline:
                for child in children:
                    child.kill()
            time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    broken = [rank for rank, code in enumerate(codes) if code]
    return min(broken, key=lambda rank: (consequence(codes[rank]), rank != failed), default=0)


def consequence(code: int | None) -> int:
    """How likely another rank's failure is behind a status: least for one that was chosen, then a
    bug's traceback; a lost peer's and a kill (negative, as subprocess has it) tell of others."""
    if code is None or code < 0:
        return 3
    return {1: 1, exits.PEER_LOST: 2}.get(code, 0)


def die_with_parent() -> None:
    """No orphan goes on writing into a run that is being resumed (Linux)."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
