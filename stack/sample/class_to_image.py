"""Pictures from classes: an EDM teacher in many steps, its student in one.

The noise of a picture is keyed by its index, so it does not depend on the batch it is made in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stack.diffusion.heun import heun, heun_nfe
from stack.diffusion.karras import karras_sigmas
from stack.nets.edm import EdmDenoiser, one_hot
from stack.nets.vae import to_uint8
from stack.util import keyed
from stack.util.errors import UserError


@dataclass(frozen=True)
class ClassToImage:
    """An EDM network as a sampler.

    Args:
        steps: Heun steps; 1 for a student, which is one evaluation at sigma 80.
    """

    denoiser: EdmDenoiser
    steps: int = 1

    @property
    def nfe(self) -> int:
        """Network evaluations per picture."""
        return heun_nfe(self.steps)

    @property
    def device(self) -> torch.device:
        """Of the network."""
        return next(self.denoiser.parameters()).device

    @torch.no_grad()
    def images(self, c: Tensor, noise: Tensor) -> Tensor:
        """uint8 pictures (B, 3, H, W) of one-hot classes (B, K) and unit noise (B, 3, H, W)."""
        schedule = self.denoiser.schedule
        if self.steps == 1:
            last = torch.full((len(noise),), schedule.steps - 1, device=noise.device)
            return to_uint8(self.denoiser(schedule.prior_scale * noise, last, c))

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return self.denoiser.denoise(x, sigma, c)

        return to_uint8(heun(denoise, noise, karras_sigmas(self.steps)))

    def noise(self, seed: int, indices: Tensor) -> Tensor:
        """Unit noise (B, 3, H, W) of pictures ``indices`` (B,)."""
        config = self.denoiser.config
        shape = (config.img_channels, config.img_resolution, config.img_resolution)
        return keyed.normal(shape, seed=seed, iteration=0, role="sample", positions=indices)

    def pictures(self, conditions: Sequence[str], indices: Tensor, seed: int) -> Tensor:
        """uint8 pictures (B, 3, H, W), on the CPU.

        Args:
            conditions: B class numbers, or empty strings where the network has no classes.
            indices: (B,) int64, which key the noise.

        Raises:
            UserError: the network has no such class.
        """
        indices = indices.to(self.device)
        c = one_hot([*map(self._class, conditions)], self.denoiser.config.label_dim)
        return self.images(c.to(self.device), self.noise(seed, indices)).cpu()

    def _class(self, condition: str) -> int:
        classes = self.denoiser.config.label_dim
        if condition == "" and not classes:
            return 0
        if condition.isdecimal() and int(condition) < classes:
            return int(condition)
        known = f"one of 0 to {classes - 1}" if classes else "no class: the network knows none"
        raise UserError(f"class: {condition!r} is not {known}")


def grid_classes(classes: int, columns: int = 10, rows: int = 4) -> list[str]:
    """Conditions of a grid with a column a class where there are up to ``columns`` of them."""
    return [str(i % min(classes, columns)) if classes else "" for i in range(rows * columns)]
