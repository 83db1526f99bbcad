"""Pictures from captions: the teacher in many steps, the student in one.

The noise of a picture is keyed by its index, so it does not depend on the batch it is made in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stack.diffusion.guidance import guide
from stack.diffusion.solvers import ddim, trailing_times
from stack.nets.sd15 import SDDenoiser
from stack.nets.text import TextEncoder
from stack.nets.vae import Autoencoder, to_uint8
from stack.util import keyed

log = logging.getLogger(__name__)

_DECODED = 32
"""Latents that go through the autoencoder at once."""


@dataclass(frozen=True)
class TextToImage:
    """A denoiser with the parts around it.

    Args:
        steps: DDIM steps; 1 for a student.
        guidance: weight of classifier-free guidance; 1 skips the unconditional pass.
    """

    denoiser: SDDenoiser
    text: TextEncoder
    vae: Autoencoder
    steps: int = 1
    guidance: float = 1.0

    @property
    def nfe(self) -> int:
        """Network evaluations per picture, guidance counted as a second one."""
        return self.steps * (1 if self.guidance == 1 else 2)

    @torch.no_grad()
    def latents(self, ids: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) from token ids (B, 77) and unit noise of that shape."""
        c = self.text(ids)
        if self.guidance != 1:
            null = self.text(self.text.null_ids[None].to(ids.device)).expand_as(c)
            both = torch.cat((c, null))

        def x0_of(x_t: Tensor, t: Tensor) -> Tensor:
            if self.guidance == 1:
                return self.denoiser(x_t, t, c)
            told, untold = self.denoiser(x_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
            return guide(told, untold, self.guidance)

        schedule = self.denoiser.schedule
        return ddim(x0_of, noise, schedule, trailing_times(self.steps, schedule.steps))

    @torch.no_grad()
    def images(self, ids: Tensor, noise: Tensor) -> Tensor:
        """uint8 pictures (B, 3, H, W)."""
        latents = self.latents(ids, noise) / self.vae.scale
        # Full-size feature maps are the largest tensors there are: a few at a time.
        return torch.cat([to_uint8(self.vae.decode(part)) for part in latents.split(_DECODED)])

    def noise(self, seed: int, indices: Tensor) -> Tensor:
        """Unit noise (B, 4, h, w) of pictures ``indices`` (B,)."""
        size = self.denoiser.unet.config.sample_size
        channels = self.denoiser.unet.config.in_channels
        return keyed.normal(
            (channels, size, size), seed=seed, iteration=0, role="sample", positions=indices
        )


def generate(
    model: TextToImage,
    captions: list[str],
    *,
    seed: int,
    batch: int,
    first: int = 0,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """uint8 pictures (N, 3, H, W) of N captions, on the CPU.

    Args:
        batch: pictures made at once. first: index of the first one, which keys its noise.
        on_batch: called with the number of pictures after every batch.
    """
    device = next(model.text.parameters()).device
    pictures, cut = [], 0
    for start in range(0, len(captions), batch):
        part = captions[start : start + batch]
        indices = torch.arange(first + start, first + start + len(part), device=device)
        ids, longer = model.text.tokenize(part)
        cut += longer
        pictures.append(model.images(ids.to(device), model.noise(seed, indices)).cpu())
        on_batch(len(part))
    if cut:
        log.warning("%d captions are longer than %d tokens and were cut", cut, ids.shape[1])
    return torch.cat(pictures)
