"""Training an EDM teacher from nothing (Karras et al. 2022, eq. 8 and Table 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stack.diffusion.karras import LogNormalSigmas, edm_loss_weight
from stack.diffusion.schedule import per_sample
from stack.fdistill.algorithm import Batch, Noise
from stack.fdistill.losses import denoising_loss
from stack.nets.edm import EdmDenoiser
from stack.nets.ema import EMA
from stack.parallel.local import LocalWeights
from stack.train.augment import augment
from stack.train.task import Task
from stack.util import keyed


class EdmTask(Task):
    """Denoising at log-normal noise levels, every level with the same weight in the network's own
    target (eq. 8).

    Args:
        weights: of the denoiser's network. average: of them, which is what becomes the teacher.
        augmented: probability of each change to a picture; 0 for none, mirrors included.
        draw: writes pictures of the averaged network: (iteration, folder).
    """

    name = "edm"

    def __init__(
        self,
        denoiser: EdmDenoiser,
        weights: LocalWeights,
        average: EMA,
        draw: Callable[[int, Path], None],
        *,
        sigmas: LogNormalSigmas,
        augmented: float,
        seed: int,
        total: int,
    ) -> None:
        self.denoiser, self.weights, self.average, self.draw = denoiser, weights, average, draw
        self.sigmas, self.augmented = sigmas, augmented
        self.seed, self.total = seed, total
        self.place: Tensor | None = None

    def iteration(self, iteration: int, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], bool]:
        [batch] = batches
        key: dict[str, Any] = {
            "seed": self.seed,
            "iteration": iteration,
            "positions": batch.positions,
        }
        x0, told = batch.x0, None
        if self.augmented:
            x0, told = augment(x0, self.augmented, **key)
        sigma = self.sigmas.draw(role="sigma", **key)
        eps = Noise(**key).normal("eps", x0)
        if self.denoiser.model.style.dropout:
            self._seed_dropout(iteration, batch.positions)
        prediction = self.denoiser.denoise(x0 + per_sample(sigma, x0) * eps, sigma, batch.c, told)
        weight = edm_loss_weight(sigma, self.denoiser.config.sigma_data)
        loss = denoising_loss(prediction, x0, weight)
        self.weights.backward(loss)
        norm, stepped = self.weights.move()
        if stepped:
            self.average.update()
        return {"loss/denoising": loss.detach(), "grad/edm": norm}, stepped

    def _seed_dropout(self, iteration: int, positions: Tensor) -> None:
        """Torch's own generator makes the masks: from the key of this rank's first sample, so that
        they depend neither on what was drawn before nor on another rank's. A rank's places in the
        batch stay the same: read off the device once."""
        if self.place is None:
            self.place = positions[:1].cpu()
        key: dict[str, Any] = {"seed": self.seed, "iteration": iteration, "positions": self.place}
        torch.manual_seed(int(keyed.uniform((), role="dropout", **key) * 2**24))

    def summary(self, figures: dict[str, Tensor]) -> dict[str, float]:
        rates = {f"lr/{self.weights.name}": self.weights.lr}
        return {name: float(value) for name, value in figures.items()} | rates

    def sample(self, iteration: int, folder: Path) -> None:
        """Pictures of the averaged network."""
        self.denoiser.eval()
        with self.average.applied():
            self.draw(iteration, folder)
        self.denoiser.train()

    def tensors(self) -> dict[str, Tensor]:
        average = {f"ema.{name}": value for name, value in self.average.tensors().items()}
        return self.weights.tensors() | average

    def counters(self) -> dict[str, Any]:
        return {"edm": self.weights.steps, "ema": self.average.updates}

    def load_counters(self, counters: dict[str, Any]) -> None:
        self.weights.steps = counters["edm"]
        self.average.updates = counters["ema"]
