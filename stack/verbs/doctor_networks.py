"""What the doctor must know of a recipe's networks, from their configurations alone: no weights
are loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from stack.config.schema import DistillRecipe, PretrainRecipe, SDTeacher
from stack.nets.heads import ConvHead
from stack.nets.hub import pipeline_folder
from stack.train.pretrain import POSITIONS, new_unet, new_vae
from stack.util.errors import UserError
from stack.util.files import read_json
from stack.verbs.doctor_machine import Shape

_FLOAT = 4
"""Bytes of a float32."""
_ADAM = 3
"""A trained weight and its two moments."""
_SMALL = 1 << 20
"""Bytes of a checkpoint of the 2-D mixture, at most."""
_WEIGHTS = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors")
"""Files of whole weights; beside them may lie variants (fp16, non_ema)."""


def attention_shapes(recipe: DistillRecipe | PretrainRecipe) -> list[Shape]:
    """The attention layers of the UNet, each kind once."""
    if isinstance(recipe, PretrainRecipe):
        unet = recipe.unet
        heads = [unet.heads] * len(unet.channels)
        return _shapes(unet.channels, unet.attention, heads, recipe.text.width)
    if not isinstance(recipe.teacher, SDTeacher):
        return []
    config = _unet_config(_folder(recipe.teacher))
    channels = config["block_out_channels"]
    # Stable Diffusion's configurations name the number of heads attention_head_dim.
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    heads = heads if isinstance(heads, list) else [heads] * len(channels)
    crossed = ["CrossAttn" in kind for kind in config["down_block_types"]]
    return _shapes(channels, crossed, heads, config["cross_attention_dim"])


def checkpoint_bytes(recipe: DistillRecipe | PretrainRecipe) -> int:
    """Bytes of a checkpoint: trained weights with Adam's moments, and averages, in float32."""
    if isinstance(recipe, PretrainRecipe):
        weights = _pretrained_weights(recipe)
        return _FLOAT * (_ADAM + 1) * weights
    if not isinstance(recipe.teacher, SDTeacher):
        return _SMALL
    folder = _folder(recipe.teacher)
    unet = unet_weights(folder)
    heads = _head_weights(recipe, _unet_config(folder))
    return _FLOAT * (_ADAM * (2 * unet + heads) + len(recipe.averages) * unet)


def unet_weights(folder: Path) -> int:
    """Parameters of a pipeline's UNet, from the headers of its files.

    Raises:
        UserError: it has none.
    """
    files = [path for path in (folder / "unet").glob("*") if _WEIGHTS.fullmatch(path.name)]
    if not files:
        raise UserError(f"{folder}/unet/*.safetensors: missing; the teacher has no UNet")
    total = 0
    for path in files:
        with safe_open(path, "pt") as weights:
            names = weights.keys()
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    return total


def _shapes(
    channels: Sequence[int], crossed: Sequence[bool], heads: Sequence[int], width: int
) -> list[Shape]:
    """Of the levels that read the text, and of the middle block, which does always."""
    levels = [level for level, cross in enumerate(crossed) if cross]
    shapes = [(channels[level], heads[level], width) for level in [*levels, -1]]
    return list(dict.fromkeys(shapes))


def _folder(teacher: SDTeacher) -> Path:
    return pipeline_folder(teacher.path, teacher.revision)


def _unet_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "unet" / "config.json")


def _head_weights(recipe: DistillRecipe, config: dict[str, Any]) -> int:
    channels = config["block_out_channels"]
    by_size = {config["sample_size"] >> level: n for level, n in enumerate(channels)}
    for size in recipe.gan.resolutions:
        if size not in by_size:
            raise UserError(
                f"gan.resolutions: {size}: the UNet has feature maps of sizes "
                f"{', '.join(map(str, by_size))}"
            )
    with torch.device("meta"):
        heads = [ConvHead(by_size[size], recipe.gan.width) for size in recipe.gan.resolutions]
    return sum(map(_size, heads))


def _pretrained_weights(recipe: PretrainRecipe) -> int:
    """Of autoencoder, UNet and text encoder: the two trainings keep checkpoints of their own."""
    vae, unet, text = recipe.vae, recipe.unet, recipe.text
    with torch.device("meta"):
        networks = [
            new_vae(64, channels=vae.channels, layers=vae.layers, groups=vae.groups),
            new_unet(
                64,
                text.width,
                channels=unet.channels,
                attention=unet.attention,
                layers=unet.layers,
                heads=unet.heads,
                groups=unet.groups,
            ),
        ]
    # A transformer block has 12 width^2 weights: 4 of attention, 8 of its MLP.
    encoder = (text.vocabulary + POSITIONS + 12 * text.width * text.layers) * text.width
    return sum(map(_size, networks)) + encoder


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
