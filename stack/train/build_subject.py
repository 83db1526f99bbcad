"""Composition of what costs are counted and timed on: networks of a teacher's shape, with random
weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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

SD15_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
"""The same fields of Stable Diffusion v1.5's text_encoder/config.json."""


@dataclass(frozen=True)
class Subject:
    """What is distilled, as far as costs go.

    Args:
        networks: (recipe, layout) -> networks on the layout's device, which may be meta.
        shape: what decides the networks' shapes, in writing; equal ones cost the same.
        x0, c: shapes of a sample and of its condition.
        frozen: parameters beside the teacher's and the trained networks'.
        text_flops: of a sample's condition, once an iteration, in float32.
        sample_bytes: that are read for a sample.
        label: what people call the teacher's network.
    """

    networks: Callable[[DistillRecipe, Layout], Networks]
    shape: str
    x0: tuple[int, ...]
    c: tuple[int, ...]
    frozen: int
    text_flops: int
    sample_bytes: int
    label: str


def text_flops(config: Mapping[str, Any]) -> int:
    """FLOPs of a caption through CLIP's text model: four projections and two products for
    attention, two layers behind it; a multiply and an add are two."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    weights = 4 * width**2 + 2 * width * inner
    return config["num_hidden_layers"] * (2 * TOKENS * weights + 4 * TOKENS**2 * width)


def sd_subject(config: dict[str, Any], text: Mapping[str, Any] = SD15_TEXT) -> Subject:
    """A pipeline with a UNet and a text encoder of these configs, and Stable Diffusion v1.5's other
    parts."""

    def networks(recipe: DistillRecipe, layout: Layout) -> Networks:
        unet = new_unet(config, str(layout.device))
        return sd_networks(recipe, unet, DiscreteSchedule.scaled_linear(), "epsilon", layout)

    size = config["sample_size"]
    x0 = (config["in_channels"], size, size)
    return Subject(
        networks,
        shape=json.dumps(config, sort_keys=True),
        x0=x0,
        c=(TOKENS, config["cross_attention_dim"]),
        frozen=sum(SD15_FROZEN.values()),
        text_flops=text_flops(text),
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
        shape=f"{plain.model_dump_json()} {levels}",
        x0=x0,
        c=(config.label_dim,),
        frozen=0,
        text_flops=0,
        sample_bytes=prod(x0) + 3 * _HEADER,  # A picture, at most as large as its pixels, and cls.
        label="EDM network",
    )
