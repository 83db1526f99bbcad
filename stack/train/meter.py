"""Rates of training, and which rank holds up the others."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from stack.parallel.collectives import ALONE, Ranks
from stack.train.task import Source

GIGA = 1e9


class Meter:
    """Rates since the last reading."""

    def __init__(self, samples: int, ranks: Ranks = ALONE) -> None:
        """Args: samples: of an iteration, over all ranks."""
        self.samples, self.ranks = samples, ranks
        self.own = self.step = 0.0
        self._reset()

    def _reset(self) -> None:
        self.start, self.waited, self.saving, self.iterations = time.perf_counter(), 0.0, 0.0, 0

    def begin(self, *, exact: bool) -> None:
        """An iteration begins; ``exact`` if it is the one that :meth:`read` compares ranks by."""
        self.ranks.clock.reset(exact=exact)
        self._began = time.perf_counter()

    def end(self) -> None:
        """The iteration is over."""
        self.iterations += 1
        self.step = time.perf_counter() - self._began
        self.own = self.step - self.ranks.clock.seconds

    def fetch(self, source: Source) -> Sequence[Any]:
        """Take the next micro-batches and count the wait."""
        before = time.perf_counter()
        batches = source.take()
        self.waited += time.perf_counter() - before
        return batches

    def read(self) -> dict[str, float]:
        """Images per second, shares of time spent waiting for data and for saves, and the slowest
        rank of the last iteration; all ranks together."""
        seconds = time.perf_counter() - self.start
        row = {
            "images_per_second": self.iterations * self.samples / seconds,
            "data_wait": self.waited / seconds,
            "save_wait": self.saving / seconds,
        }
        row |= slowest(self.ranks.gather((self.own, self.step)))
        self._reset()
        return row


def slowest(times: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The rank that the others wait for, and how much longer than the median rank it is busy, as
    a share of the iteration; nothing where there is one rank.

    What a rank waits for in the gathers of fsdp and zero counts as its own time, so under these
    it takes a difference in loading or on the CPU to show.

    Args:
        times: by rank, seconds outside of collectives, and of the iteration.
    """
    if len(times) == 1:
        return {}
    own = [busy for busy, _ in times]
    worst = max(range(len(own)), key=own.__getitem__)
    step = max(whole for _, whole in times)
    return {"ranks/slowest": worst, "ranks/lag": (own[worst] - statistics.median_low(own)) / step}


def memory(ranks: Ranks) -> dict[str, float]:
    """Peak memory of the fullest rank, GB: of its process, and of tensors on its GPU."""
    unit = 1 if sys.platform == "darwin" else 1024  # Bytes of ru_maxrss.
    peaks = {"memory/host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIGA}
    if torch.cuda.is_available():
        peaks["memory/gpu_gb"] = torch.cuda.max_memory_allocated() / GIGA
    every = ranks.gather(peaks)
    return {name: max(other[name] for other in every) for name in peaks}
