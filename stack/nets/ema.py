"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """A float32 average of the trainable parameters of a module.

    ``decay`` is reached gradually, min(decay, (1 + n) / (10 + n)) after n updates, so that a
    short run does not average in its random start (as TensorFlow's and timm's averages do).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.shadow = [p.detach().clone().float() for p in module.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = [p.detach().float() for p in self.module.parameters()]
        torch._foreach_lerp_(self.shadow, live, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module with the averaged weights inside the context."""
        kept = [p.detach().clone() for p in self.module.parameters()]
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.module.parameters(), values, strict=True):
            parameter.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """Averaged parameters by name, to save or to fill in place."""
        names = (name for name, _ in self.module.named_parameters())
        return dict(zip(names, self.shadow, strict=True))
