"""What a schedule knows of each time, on every device that asks."""

from __future__ import annotations

import torch
from torch import Tensor


class Table:
    """Values of the integer times 0 to T - 1.

    Args:
        values: (T,).
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._copies: dict[torch.device, Tensor] = {}

    def at(self, t: Tensor) -> Tensor:
        """Those of some times, integers of any shape, on their device.

        The values are copied there once: a GPU waits for what is copied to it.

        Raises:
            TypeError: the times are no integers.
        """
        if t.is_floating_point():
            raise TypeError(f"times are integers, got {t.dtype}")
        copy = self._copies.get(t.device)
        if copy is None:
            copy = self._copies[t.device] = self.values.to(t.device)
        return copy[t]
