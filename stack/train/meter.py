"""Rates of training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from stack.train.task import Source


class Meter:
    """Rates since the last reading."""

    def __init__(self, samples: int) -> None:
        """Args: samples: of an iteration, over all ranks."""
        self.samples = samples
        self._reset()

    def _reset(self) -> None:
        self.start, self.waited, self.saving, self.iterations = time.perf_counter(), 0.0, 0.0, 0

    def fetch(self, source: Source) -> Sequence[Any]:
        """Take the next micro-batches and count the wait."""
        before = time.perf_counter()
        batches = source.take()
        self.waited += time.perf_counter() - before
        return batches

    def read(self) -> dict[str, float]:
        """Images per second and shares of time spent waiting for data and for saves."""
        seconds = time.perf_counter() - self.start
        row = {
            "images_per_second": self.iterations * self.samples / seconds,
            "data_wait": self.waited / seconds,
            "save_wait": self.saving / seconds,
        }
        self._reset()
        return row
