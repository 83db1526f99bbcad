"""How training times are drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from stack.diffusion.schedule import Schedule
from stack.util import keyed


class UniformTimes:
    """Integer times, equally likely, both ends included."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def draw(self, *, seed: int, iteration: int, role: str, positions: Tensor) -> Tensor:
        """(B,) int64 times, a function of the key alone."""
        u = keyed.uniform((), seed=seed, iteration=iteration, role=role, positions=positions)
        return self.first + (u.double() * (self.last - self.first + 1)).long()

    def log_snr_edges(self, schedule: Schedule, bins: int) -> Tensor:
        """(bins - 1,) ascending log-SNR values that part the drawn times into equal shares."""
        times = torch.arange(self.first, self.last + 1)
        levels = schedule.log_snr(times).sort().values
        return levels[torch.arange(1, bins) * len(levels) // bins]
