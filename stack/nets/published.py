"""Shapes of published networks, to count and time them without their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from stack.nets.edm_blocks import CIFAR10, IMAGENET64
from stack.util.errors import UserError
from stack.util.files import read_json

_SD = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": _SD
    | {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "small": _SD
    | {
        "block_out_channels": (32, 32, 64, 64),
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    },
}
"""By name: Stable Diffusion v1.x's (859,520,964 parameters), and a small one of the same build,
whose times on CPUs can be compared."""

SD15_FROZEN = {"text encoder": 123_060_480, "autoencoder": 83_653_863}
"""Parameters of Stable Diffusion v1.5's other parts."""

TOKENS = 77
"""Length of the text condition."""

EDM_NETWORKS = {
    "edm-cifar10-32x32-cond-vp": CIFAR10,
    "edm-cifar10-32x32-uncond-vp": CIFAR10.model_copy(update={"label_dim": 0}),
    "edm-imagenet-64x64-cond-adm": IMAGENET64,
}
"""By the names under which NVIDIA publishes them."""


def unet_config(source: str | Path) -> dict[str, Any]:
    """The config of a UNet: one of UNETS, a config.json, or that of a pipeline folder.

    Raises:
        UserError: neither.
    """
    if str(source) in UNETS:
        return UNETS[str(source)]
    path = Path(source)
    for file in (path, path / "unet" / "config.json"):
        if file.is_file():
            return read_json(file)
    raise UserError(f"{source}: no config.json of a UNet, and none of {', '.join(UNETS)}")


def new_unet(config: dict[str, Any], device: str = "meta") -> UNet2DConditionModel:
    """A UNet of this shape with weights as torch makes them; on the meta device, with none."""
    with torch.device(device):
        return UNet2DConditionModel.from_config(config)
