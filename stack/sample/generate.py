"""Pictures from captions: the teacher in many steps, the student in one.

The noise of a picture is keyed by its index, so it does not depend on the batch it is made in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from stack.diffusion.ancestral import ancestral
from stack.diffusion.guidance import guide
from stack.diffusion.solvers import ddim, trailing_times
from stack.nets.attention import text_read_once
from stack.nets.edm import EdmDenoiser
from stack.nets.fingerprint import schedule_fingerprint, weights_fingerprint
from stack.nets.sd15 import SDDenoiser
from stack.nets.text import TextEncoder
from stack.nets.vae import Autoencoder, to_uint8
from stack.util import keyed

log = logging.getLogger(__name__)

DECODED = 1 << 14
"""Sites of latents that go through the autoencoder at once, at most 128 pictures: 4 of 64x64."""


Kind = Literal["ode", "sde"]
"""What a sampler solves: the probability-flow ODE, or the SDE, with fresh noise on the way."""


class Sampler(Protocol):
    """What makes pictures of conditions: captions, or numbers of classes written out."""

    @property
    def classes(self) -> int | None:
        """That its conditions number, 0 where it takes none; None where they are captions."""

    @property
    def steps(self) -> int:
        """Of its solver; a student has one."""

    @property
    def nfe(self) -> int:
        """Network evaluations per picture."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def told(self) -> str:
        """How it samples, for people."""

    def facts(self) -> dict[str, Any]:
        """All that decides a picture besides its condition, its index and the seed, as JSON holds
        it: weights by their hash, settings as they are. The same on every device."""

    def with_settings(
        self, *, steps: int | None = None, guidance: float | None = None, kind: Kind | None = None
    ) -> Sampler:
        """The same networks, sampled in another way where one is given.

        Raises:
            UserError: they have no such thing.
        """

    def pictures(self, conditions: Sequence[str], indices: Tensor, seed: int) -> Tensor:
        """uint8 pictures (B, 3, H, W), on the CPU: each a function of its condition, its index,
        int64 (B,), and the seed."""


def denoiser_facts(denoiser: SDDenoiser | EdmDenoiser) -> dict[str, Any]:
    """What a denoiser adds to :meth:`Sampler.facts`."""
    return {
        "denoiser": weights_fingerprint(denoiser),
        "schedule": schedule_fingerprint(denoiser.schedule),
        "precision": "bf16" if denoiser.bf16 else "fp32",
    }


@dataclass(frozen=True)
class TextToImage:
    """A denoiser with the parts around it.

    Args:
        device: where it computes; its parameters may lie elsewhere.
        steps: of the sampler; 1 for a student.
        guidance: weight of classifier-free guidance; 1 skips the unconditional pass.
        sampler: ddim, of the ODE; ancestral, of the SDE.
    """

    denoiser: SDDenoiser
    text: TextEncoder
    vae: Autoencoder
    device: torch.device
    steps: int = 1
    guidance: float = 1.0
    sampler: Literal["ddim", "ancestral"] = "ddim"

    @property
    def classes(self) -> None:
        """Its conditions are captions."""

    @property
    def nfe(self) -> int:
        """Network evaluations per picture, guidance counted as a second one."""
        return self.steps * (1 if self.guidance == 1 else 2)

    @property
    def told(self) -> str:
        """How it samples, for people."""
        kind = "DDIM" if self.sampler == "ddim" else "ancestral"
        return f"{kind}, {self.steps} steps, guidance {self.guidance:g}"

    def facts(self) -> dict[str, Any]:
        """All that decides a picture besides its caption, its index and the seed."""
        return denoiser_facts(self.denoiser) | {
            "parameterization": self.denoiser.parameterization,
            "text": weights_fingerprint(self.text),
            "vae": weights_fingerprint(self.vae),
            "steps": self.steps,
            "guidance": self.guidance,
            "sampler": self.sampler,
        }

    def with_settings(
        self, *, steps: int | None = None, guidance: float | None = None, kind: Kind | None = None
    ) -> Self:
        """As of :class:`Sampler`; SDE: the ancestral sampler."""
        samplers: dict[Kind | None, Literal["ddim", "ancestral"]] = {
            None: self.sampler,
            "ode": "ddim",
            "sde": "ancestral",
        }
        return replace(
            self,
            steps=steps or self.steps,
            guidance=self.guidance if guidance is None else guidance,
            sampler=samplers[kind],
        )

    @torch.no_grad()
    def latents(
        self, ids: Tensor, noise: Tensor, fresh: Callable[[int], Tensor] | None = None
    ) -> Tensor:
        """Scaled latents (B, 4, h, w) from token ids (B, 77) and unit noise of that shape.

        Args:
            fresh: unit noise of each step of the ancestral sampler, which alone needs it.
        """
        if self.guidance != 1:
            ids = torch.cat((ids, self.text.null_ids.to(ids.device).expand_as(ids)))
        c = self.text(ids)

        def x0_of(x_t: Tensor, t: Tensor) -> Tensor:
            if self.guidance == 1:
                return self.denoiser(x_t, t, c)
            told, untold = self.denoiser(x_t.repeat(2, 1, 1, 1), t.repeat(2), c).chunk(2)
            return guide(told, untold, self.guidance)

        schedule = self.denoiser.schedule
        times = trailing_times(self.steps, schedule.steps)
        with self._reading(ids):
            if self.sampler == "ddim":
                return ddim(x0_of, noise, schedule, times)
            assert fresh
            return ancestral(x0_of, noise, schedule, times, fresh)

    def _reading(self, ids: Tensor) -> AbstractContextManager[None]:
        """A student in training may be compiled, or compute its blocks twice: it reads texts as
        they come, once anyhow."""
        changed = any("forward" in vars(block) for block in self.denoiser.blocks())
        if self.steps == 1 and changed:
            return nullcontext()
        return text_read_once(self.denoiser.unet, ids)

    @torch.no_grad()
    def images(
        self, ids: Tensor, noise: Tensor, fresh: Callable[[int], Tensor] | None = None
    ) -> Tensor:
        """uint8 pictures (B, 3, H, W); arguments as of :meth:`latents`."""
        latents = self.latents(ids, noise, fresh) / self.vae.scale
        # Full-size feature maps are the largest tensors there are: a few at a time.
        few = max(1, min(128, DECODED // latents[0, 0].numel()))
        return torch.cat([to_uint8(self.vae.decode(part)) for part in latents.split(few)])

    def noise(self, seed: int, indices: Tensor, step: int = 0) -> Tensor:
        """Unit noise (B, 4, h, w) of pictures ``indices`` (B,): where a sampler begins, or what
        an ancestral one adds after its ``step``-th step, from 1."""
        size = self.denoiser.unet.config.sample_size
        channels = self.denoiser.unet.config.in_channels
        return keyed.normal(
            (channels, size, size), seed=seed, iteration=step, role="sample", positions=indices
        )

    def pictures(self, conditions: Sequence[str], indices: Tensor, seed: int) -> Tensor:
        """uint8 pictures (B, 3, H, W), on the CPU, of B captions."""
        ids, cut = self.text.tokenize(list(conditions))
        if cut:
            _tell_of_cuts(ids.shape[1])
        indices = indices.to(self.device)

        def fresh(step: int) -> Tensor:
            return self.noise(seed, indices, step)

        return self.images(ids.to(self.device), self.noise(seed, indices), fresh).cpu()


def generate(
    model: Sampler,
    conditions: Sequence[str],
    *,
    seed: int,
    batch: int,
    indices: Tensor | None = None,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """uint8 pictures (N, 3, H, W) of N conditions, on the CPU.

    Args:
        batch: pictures made at once; what they show does not depend on it.
        indices: int64 (N,), which key the noise; 0, 1, ... if None.
        on_batch: called with the number of pictures after every batch.
    """
    keys = torch.arange(len(conditions)) if indices is None else indices
    pictures = []
    for start in range(0, len(conditions), batch):
        part = conditions[start : start + batch]
        pictures.append(model.pictures(part, keys[start : start + batch], seed))
        on_batch(len(part))
    return torch.cat(pictures)


@cache
def _tell_of_cuts(tokens: int) -> None:
    """Once a process: a long evaluation would say it of every batch."""
    log.warning("captions of more than %d tokens are cut", tokens)
