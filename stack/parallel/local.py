"""A trained network on one process (``parallel.backend: none``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class LocalWeights:
    """Weights, optimizer and learning-rate schedule of one network; fdistill's ``Trained``.

    Args:
        lr_at: learning rate of this network's n-th step, counted from 0.
        max_norm: global gradient norm above which the gradient is scaled down.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: Optimizer,
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

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No gradient reaches the parameters inside the context."""
        self.module.requires_grad_(False)
        try:
            yield
        finally:
            self.module.requires_grad_(True)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, buffers and optimizer moments by name, for a checkpoint."""
        state = {f"{self.name}.{key}": value for key, value in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for key, value in self._moments(parameter).items():
                state[f"{self.name}.optimizer.{name}.{key}"] = value
        return state

    def _moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Adam's state of one parameter, made as its first step would make it."""
        state = self.optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
