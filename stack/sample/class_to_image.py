"""Pictures from classes: an EDM teacher in many steps, its student in one.

The noise of a picture is keyed by its index, so it does not depend on the batch it is made in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor

from stack.diffusion.heun import (
    CIFAR10_CHURN,
    IMAGENET64_CHURN,
    Churn,
    heun,
    heun_nfe,
    stochastic_heun,
)
from stack.diffusion.karras import karras_sigmas
from stack.nets.edm import EdmDenoiser, one_hot
from stack.nets.vae import to_uint8
from stack.sample.generate import Kind, denoiser_facts
from stack.util import keyed
from stack.util.errors import UserError

log = logging.getLogger(__name__)

HEUN_STEPS = {"ddpm++": 18, "adm": 40}
_CHURN = {"ddpm++": CIFAR10_CHURN, "adm": IMAGENET64_CHURN}
"""By architecture: what EDM took for the network it published of each."""


@dataclass(frozen=True)
class ClassToImage:
    """An EDM network as a sampler.

    Args:
        device: where it computes; its parameters may lie elsewhere.
        steps: Heun steps; 1 for a student, which is one evaluation at sigma 80.
        churn: of the stochastic sampler; None for that of the ODE.
    """

    denoiser: EdmDenoiser
    device: torch.device
    steps: int = 1
    churn: Churn | None = None

    @property
    def classes(self) -> int:
        """That its conditions number; 0 where it takes none."""
        return self.denoiser.config.label_dim

    @property
    def nfe(self) -> int:
        """Network evaluations per picture."""
        return heun_nfe(self.steps)

    @property
    def told(self) -> str:
        """How it samples, for people."""
        if self.churn is None:
            return f"Heun, {self.steps} steps"
        return f"stochastic Heun, {self.steps} steps, S_churn {self.churn.amount:g}"

    def facts(self) -> dict[str, Any]:
        """All that decides a picture besides its class, its index and the seed."""
        churn = {"churn": asdict(self.churn)} if self.churn else {}
        return denoiser_facts(self.denoiser) | {"steps": self.steps} | churn

    def with_settings(
        self, *, steps: int | None = None, guidance: float | None = None, kind: Kind | None = None
    ) -> Self:
        """As of :class:`Sampler`; SDE: with the noise that EDM's authors add for a network of this
        architecture."""
        if guidance not in (None, 1):
            raise UserError(f"--guidance: {guidance:g}: an EDM network has none")
        churns = {None: self.churn, "ode": None, "sde": _CHURN[self.denoiser.config.architecture]}
        return replace(self, steps=steps or self.steps, churn=churns[kind])

    @torch.no_grad()
    def images(
        self, c: Tensor, noise: Tensor, fresh: Callable[[int], Tensor] | None = None
    ) -> Tensor:
        """uint8 pictures (B, 3, H, W) of one-hot classes (B, K) and unit noise (B, 3, H, W).

        Args:
            fresh: unit noise of each step of the stochastic sampler, which alone needs it.
        """
        schedule = self.denoiser.schedule
        if self.steps == 1:
            last = torch.full((len(noise),), schedule.steps - 1, device=noise.device)
            return to_uint8(self.denoiser(schedule.prior_scale * noise, last, c))

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return self.denoiser.denoise(x, sigma, c)

        sigmas = karras_sigmas(self.steps)
        if self.churn is None:
            return to_uint8(heun(denoise, noise, sigmas))
        assert fresh
        return to_uint8(stochastic_heun(denoise, noise, sigmas, self.churn, fresh))

    def noise(self, seed: int, indices: Tensor, step: int = 0) -> Tensor:
        """Unit noise (B, 3, H, W) of pictures ``indices`` (B,): where a sampler begins, or what a
        stochastic one adds in its ``step``-th step, from 1."""
        config = self.denoiser.config
        shape = (config.img_channels, config.img_resolution, config.img_resolution)
        return keyed.normal(shape, seed=seed, iteration=step, role="sample", positions=indices)

    def pictures(self, conditions: Sequence[str], indices: Tensor, seed: int) -> Tensor:
        """uint8 pictures (B, 3, H, W), on the CPU.

        Args:
            conditions: B class numbers. Without classes, empty strings; numbers, as suites of
                classes have them, then say nothing, which is told.
            indices: (B,) int64, which key the noise.

        Raises:
            UserError: the network has no such class.
        """
        indices = indices.to(self.device)
        c = one_hot([*map(self._class, conditions)], self.classes)

        def fresh(step: int) -> Tensor:
            return self.noise(seed, indices, step)

        return self.images(c.to(self.device), self.noise(seed, indices), fresh).cpu()

    def _class(self, condition: str) -> int:
        numbered = condition.isdecimal()
        if not self.classes:
            if condition and not numbered:
                raise UserError(
                    f"class: {condition!r}: the network has none; its condition is the empty one"
                )
            if numbered:
                _tell_of_no_classes()
            return 0
        if not numbered or int(condition) >= self.classes:
            raise UserError(f"class: {condition!r} is not one of 0 to {self.classes - 1}")
        return int(condition)


def grid_classes(classes: int, columns: int = 10, rows: int = 4) -> list[str]:
    """Conditions of a grid with a column a class where there are up to ``columns`` of them."""
    return [str(i % columns % classes) if classes else "" for i in range(rows * columns)]


@cache
def _tell_of_no_classes() -> None:
    """Once a process: a long evaluation would say it of every picture."""
    log.warning("the network has no classes: the number of one changes nothing")
