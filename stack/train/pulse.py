"""Signs of life: heartbeat.json for whoever looks at a run's folder, and each rank's watchdog."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stack.report.journal import EARLIER_BEATS, HEARTBEAT
from stack.util import exits
from stack.util.files import write_json

_EVERY = 5.0
"""Seconds between two writings of the heartbeat."""
_LATER = 30.0
"""Seconds after the watchdog's limit at which a process is ended that cannot run Python."""
_PATIENCE = 10
"""Times the limit, for what is no iteration: loading, a save, an evaluation."""
_STDERR = 2
"""As the operating system numbers it."""


class Pulse:
    """Told of every iteration.

    heartbeat.json holds the step, the steps in all, the Unix time, seconds a step takes, and
    where the first rank runs; the last one of an earlier start goes to heartbeats.jsonl. When no
    iteration ends for ``limit`` seconds, a rank writes the stacks of all its threads to its
    standard error and ends with status 75 (1 if it is stuck in a library that keeps Python from
    running). What is no iteration has ten times as long: on a disk that hangs all ranks do, and no
    collective gives up.

    Args:
        folder: of the run. limit: seconds, 0 for no watchdog. silent: write no heartbeat, on a
            rank that is not the first.
    """

    def __init__(self, folder: Path, limit: float, total: int, *, silent: bool = False) -> None:
        self.folder, self.limit, self.total, self.silent = folder, limit, total, silent
        self.step = 0
        self._first: tuple[int, float] | None = None
        self._last = self._written = time.monotonic()
        self._closed = threading.Event()
        self._arm(_PATIENCE * limit)
        if limit:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, step: int) -> None:
        """``step`` iterations are done."""
        self.step, self._last = step, time.monotonic()
        self._arm(self.limit)
        if self._first is None:
            self._first = (step, self._last)
            self._put_aside()
            self.write()
        elif self._last - self._written >= _EVERY:
            self.write()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Not an iteration: a picture, an evaluation or a save may take its time."""
        self._arm(_PATIENCE * self.limit)
        yield
        self.beat(self.step)

    def write(self) -> None:
        """Write the heartbeat now."""
        self._written = time.monotonic()
        if self.silent:
            return
        first, since = self._first or (self.step, self._written)
        done = self.step - first
        write_json(
            self.folder / HEARTBEAT,
            {
                "step": self.step,
                "total_steps": self.total,
                "wall": time.time(),
                "seconds_per_step": (self._last - since) / done if done else None,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "job": os.environ.get("SLURM_JOB_ID"),
            },
        )

    def _put_aside(self) -> None:
        """Keep the last sign of life of an earlier start: it tells what was lost."""
        file = self.folder / HEARTBEAT
        if file.is_file() and not self.silent:
            with (self.folder / EARLIER_BEATS).open("a") as earlier:
                earlier.write(" ".join(file.read_text().split()) + "\n")

    def close(self) -> None:
        """The training is over, for now."""
        self._closed.set()
        if self.limit:  # Else the process may have another use for it.
            faulthandler.cancel_dump_traceback_later()

    def _arm(self, seconds: float) -> None:
        """Give up in so many seconds, unless told something by then."""
        self._allowed = (time.monotonic() + seconds, seconds)
        if self.limit:
            # By a thread that needs no interpreter: one that is stuck in a library may hold it.
            faulthandler.dump_traceback_later(seconds + _LATER, exit=True, file=_STDERR)

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.limit / 4)):
            deadline, seconds = self._allowed
            if time.monotonic() > deadline:
                self._give_up(seconds)

    def _give_up(self, seconds: float) -> None:
        faulthandler.dump_traceback(file=_STDERR)
        print(
            f"error: {self.folder}: iteration {self.step}: no progress for {seconds:g} s "
            "(parallel.watchdog); the stacks of this rank's threads are above; checkpoints are "
            "whole, start again with --resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(exits.PEER_LOST)
