"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class EMA:
    """A float32 average of weights that are being trained, cut over ranks as they are.

    ``decay`` is reached gradually, min(decay, (1 + n) / (10 + n)) after n updates, so that a
    short run does not average in its random start (as TensorFlow's and timm's averages do).

    Args:
        live: the weights by name; of a sharded network, this rank's part of them.
        refresh: to be called after ``live`` was written.
    """

    def __init__(
        self, live: Mapping[str, Tensor], decay: float, refresh: Callable[[], None] = lambda: None
    ) -> None:
        self.live = {name: weight.detach() for name, weight in live.items()}
        self.decay, self.refresh, self.updates = decay, refresh, 0
        self.shadow = {name: weight.clone().float() for name, weight in self.live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = [weight.float() for weight in self.live.values()]
        torch._foreach_lerp_(list(self.shadow.values()), live, 1 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew from the present weights."""
        self.updates = 0
        for name, weight in self.live.items():
            self.shadow[name].copy_(weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network with the averaged weights inside the context."""
        kept = {name: weight.clone() for name, weight in self.live.items()}
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self.live.items():
            weight.copy_(values[name])
        self.refresh()

    def tensors(self) -> dict[str, Tensor]:
        """The averages by name, to save or to fill in place."""
        return dict(self.shadow)
