"""A trained network on one process (``parallel.backend: none``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stack.parallel.adam import Adam
from stack.util.errors import UserError


def make_dense(module: nn.Module) -> None:
    """Lay parameters out in the order of their dimensions, as what cuts them over ranks wants
    them. Activations keep to channels last by what networks do with the inputs of convolutions
    (stack.nets.layout); a convolution then lays its weight out anew at each use."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


class LocalWeights:
    """Weights, optimizer and learning-rate schedule of one network; fdistill's ``Trained``.

    What holds weights in another way derives from this one and has all of these methods.

    Args:
        lr_at: learning rate of this network's n-th step, counted from 0.
        max_norm: global gradient norm above which the gradient is scaled down.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: Adam,
        *,
        lr_at: Callable[[int], float],
        max_norm: float,
    ) -> None:
        self.name, self.module, self.optimizer = name, module, optimizer
        self.lr_at, self.max_norm, self.steps = lr_at, max_norm, 0

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return self.lr_at(self.steps)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient."""
        loss.backward()

    def clip(self) -> Tensor:
        """Clip the gradient by its global norm; returns the norm before."""
        return nn.utils.clip_grad_norm_(self.module.parameters(), self.max_norm)

    def step(self) -> None:
        """Step the optimizer and clear the gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.step()
        self.steps += 1
        self.discard()

    def discard(self) -> None:
        """Clear the gradient."""
        self.optimizer.zero_grad(set_to_none=True)

    def move(self) -> tuple[Tensor, bool]:
        """Clip, then step, or discard a gradient that is not finite; norm, and which it was."""
        norm = self.clip()
        finite = bool(norm.isfinite())
        self.step() if finite else self.discard()
        return norm, finite

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No gradient reaches the parameters inside the context."""
        self.module.requires_grad_(False)
        try:
            yield
        finally:
            self.module.requires_grad_(True)

    # What an average is taken of, and what a warm start writes.

    def pieces(self) -> dict[str, Tensor]:
        """This rank's part of the float32 weights by name, as views to read and write."""
        return dict(self.module.named_parameters())

    def write(self, values: Iterable[tuple[str, Tensor]]) -> None:
        """Overwrite the weights with whole ones, given one at a time, by name; collective.

        Raises:
            UserError: one is missing, left over or of another size.
        """
        missing, fixed = self._sizes(), dict(self.module.named_buffers())
        for name, value in values:
            if name in fixed:
                continue  # Made by the constructor, and not trained.
            if missing.pop(name, 0) != value.numel():
                raise UserError(f"{self.name}.{name}: does not fit this run's network")
            self._put(name, value)
        if missing:
            raise UserError(f"{self.name}.{next(iter(missing))}: missing")
        self.refresh()

    def _sizes(self) -> dict[str, int]:
        return {name: parameter.numel() for name, parameter in self.module.named_parameters()}

    @torch.no_grad()
    def _put(self, name: str, value: Tensor) -> None:
        weight = self.module.get_parameter(name)
        weight.copy_(value.view_as(weight))

    def refresh(self) -> None:
        """Bring what the forward uses in line with :meth:`pieces` that were written."""

    # What a checkpoint holds: tensors, of which a sharded one is saved part by part, and files
    # of another library.

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, buffers and optimizer moments by name, to save or to fill in place."""
        state = {f"{self.name}.{key}": value for key, value in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for key, value in self.optimizer.moments(parameter).items():
                state[f"{self.name}.optimizer.{name}.{key}"] = value
        return state

    def objects(self) -> dict[str, Any]:
        """What this rank writes with torch.save, by path in the checkpoint's folder."""
        return {}

    def load_objects(self, folder: Path) -> None:
        """Take over :meth:`objects` from a checkpoint's folder."""
