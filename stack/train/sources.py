"""Micro-batches for each job, from the stream or from a keyed generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stack.data.batch import BatchLoader
from stack.fdistill.algorithm import Batch
from stack.nets.edm import one_hot
from stack.nets.text import TextEncoder
from stack.nets.vae import from_uint8
from stack.util.errors import UserError


class RawSource:
    """Whole batches as the loader gives them, for pretraining.

    Args:
        samples: of an iteration, over all ranks.
    """

    def __init__(self, loader: BatchLoader, *, samples: int) -> None:
        self.loader, self.samples = loader, samples
        self.epoch_samples = samples * loader.stream.steps_per_epoch
        loader.keep_damage()
        self.batches = iter(loader)

    def take(self) -> Sequence[Any]:
        return [next(self.batches)]

    def counts(self) -> dict[str, int]:
        return self.loader.counts()

    def damage(self) -> list[str]:
        return self.loader.damage()

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)
        self.batches = iter(self.loader)


class LatentSource(RawSource):
    """Latents and token ids from shards, as f-distill batches.

    Args:
        accumulation: micro-batches the local batch is cut into.
    """

    def __init__(
        self,
        loader: BatchLoader,
        text: TextEncoder,
        *,
        scale: float,
        samples: int,
        accumulation: int,
        device: torch.device,
    ) -> None:
        super().__init__(loader, samples=samples)
        self.text, self.scale = text, scale
        self.accumulation, self.device = accumulation, device
        with torch.no_grad():
            self.null = text(text.null_ids[None].to(device))

    @torch.no_grad()
    def take(self) -> Sequence[Batch]:
        raw = next(self.batches)
        c = self.text(raw["tokens"].to(self.device, non_blocking=True))
        batch = Batch(
            positions=raw["position"].to(self.device, non_blocking=True),
            x0=raw["latent"].to(self.device, non_blocking=True).float() * self.scale,
            c=c,
            null=self.null.expand_as(c),
        )
        return micro_batches(batch, self.accumulation)


class PixelSource(RawSource):
    """Pictures in [-1, 1] and one-hot classes from shards, as f-distill batches.

    Args:
        classes: that the network knows; 0 where it has none, and the shards then need none.
        accumulation: micro-batches the local batch is cut into.
    """

    def __init__(
        self,
        loader: BatchLoader,
        *,
        classes: int,
        samples: int,
        accumulation: int = 1,
        device: torch.device,
    ) -> None:
        super().__init__(loader, samples=samples)
        self.classes, self.accumulation, self.device = classes, accumulation, device

    def take(self) -> Sequence[Batch]:
        raw = next(self.batches)
        x0 = from_uint8(raw["image"].to(self.device, non_blocking=True))
        c = one_hot(self._known(raw), self.classes).to(self.device)
        batch = Batch(raw["position"].to(self.device), x0, c, torch.zeros_like(c))
        return micro_batches(batch, self.accumulation)

    def _known(self, raw: dict[str, Any]) -> Tensor:
        """int64 (B,) classes, which the network must know."""
        if not self.classes:
            return raw["position"]
        for number in raw["cls"].tolist():
            if not 0 <= number < self.classes:
                raise UserError(
                    f"data.folders: cls: {number}: the teacher knows classes 0 to "
                    f"{self.classes - 1}; take shards of its data"
                )
        return raw["cls"]


class KeyedSource:
    """Data that is a function of (iteration, positions), such as an analytic mixture."""

    def __init__(
        self,
        draw: Callable[[int, Tensor], Tensor],
        *,
        samples: int,
        positions: Tensor,
        accumulation: int,
    ) -> None:
        """Args: samples: of an iteration over all ranks; positions: (B,) this rank's."""
        self.draw, self.accumulation = draw, accumulation
        self.samples = self.epoch_samples = samples
        self.positions = positions
        self.iteration = 0

    def take(self) -> Sequence[Batch]:
        x0 = self.draw(self.iteration, self.positions)
        self.iteration += 1
        nothing = torch.zeros(len(x0), 0, device=x0.device)
        return micro_batches(Batch(self.positions, x0, nothing, nothing), self.accumulation)

    def counts(self) -> dict[str, int]:
        return {}

    def damage(self) -> list[str]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]


def micro_batches(batch: Batch, count: int) -> Sequence[Batch]:
    """Cut a batch into ``count`` equal ones, in order."""
    if count == 1:
        return [batch]
    parts = [value.chunk(count) for value in (batch.positions, batch.x0, batch.c, batch.null)]
    return [Batch(*row) for row in zip(*parts, strict=True)]
