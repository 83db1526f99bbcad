"""Composition of what costs are counted and timed on: networks of a teacher's shape, with random
weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from stack.config.schema import DistillRecipe
from stack.diffusion.schedule import DiscreteSchedule
from stack.nets.edm import edm_network
from stack.nets.edm_blocks import EdmConfig
from stack.nets.published import SD15_FROZEN, TOKENS, new_unet
from stack.parallel.mesh import Layout
from stack.train.build_algorithm import Networks
from stack.train.build_edm import edm_networks
from stack.train.build_sd import sd_networks

_HEADER = 512
"""Bytes of a tar's header for each field of a sample."""


@dataclass(frozen=True)
class Subject:
    """What is distilled, as far as costs go.

    Args:
        networks: (recipe, layout) -> networks on the layout's device, which may be meta.
        x0, c: shapes of a sample and of its condition.
        frozen: parameters beside the teacher's and the trained networks'.
        sample_bytes: that are read for a sample.
        label: what people call the teacher's network.
    """

    networks: Callable[[DistillRecipe, Layout], Networks]
    x0: tuple[int, ...]
    c: tuple[int, ...]
    frozen: int
    sample_bytes: int
    label: str


def sd_subject(config: dict[str, Any]) -> Subject:
    """A pipeline with a UNet of this config, and Stable Diffusion v1.5's other parts."""

    def networks(recipe: DistillRecipe, layout: Layout) -> Networks:
        unet = new_unet(config, str(layout.device))
        return sd_networks(recipe, unet, DiscreteSchedule.scaled_linear(), "epsilon", layout)

    size = config["sample_size"]
    x0 = (config["in_channels"], size, size)
    return Subject(
        networks,
        x0=x0,
        c=(TOKENS, config["cross_attention_dim"]),
        frozen=sum(SD15_FROZEN.values()),
        sample_bytes=2 * (prod(x0) + TOKENS) + 3 * _HEADER,  # latent.npy, tokens.npy
        label="UNet",
    )


def edm_subject(config: EdmConfig, levels: int = 1000) -> Subject:
    """An EDM network; as in a distillation, without the input for what augmentation did.

    Args:
        levels: times of its grid.
    """
    plain = config.model_copy(update={"augment_dim": 0})

    def networks(recipe: DistillRecipe, layout: Layout) -> Networks:
        with torch.device(layout.device):
            network = edm_network(plain)
        return edm_networks(recipe, network, levels, layout)

    x0 = (config.img_channels, config.img_resolution, config.img_resolution)
    return Subject(
        networks,
        x0=x0,
        c=(config.label_dim,),
        frozen=0,
        sample_bytes=prod(x0) + 3 * _HEADER,  # A picture, at most as large as its pixels, and cls.
        label="EDM network",
    )
