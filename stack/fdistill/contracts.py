"""What the algorithm asks of the networks and of what trains them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from stack.diffusion.schedule import Schedule


class Denoiser(Protocol):
    """A network that reads x0 (float32) from x_t (B, ...), t (B,) and a condition c (B, ...)."""

    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor: ...

    def features(self, x_t: Tensor, t: Tensor, c: Tensor) -> list[Tensor]:
        """Hidden states for the heads, from the encoder alone."""

    def x0_and_features(self, x_t: Tensor, t: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Both from one pass; gradient only as far as the features."""

    def loss_weight(self, t: Tensor) -> Tensor:
        """(B,) weight that makes an error in x0 one in the network's own target."""


class Heads(Protocol):
    """Discriminator heads: features to logits (B, heads)."""

    def __call__(self, features: list[Tensor]) -> Tensor: ...


class Trained(Protocol):
    """The weights of a network in training, whatever holds them."""

    name: str

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient."""

    def clip(self) -> Tensor:
        """Clip the gradient by its global norm; returns the norm before."""

    def step(self) -> None:
        """Step the optimizer and clear the gradient."""

    def discard(self) -> None:
        """Clear the gradient without a step."""

    def frozen(self) -> AbstractContextManager[None]:
        """A context in which no gradient reaches these weights."""
