"""What the doctor must know of a recipe's networks, from their configurations alone: no weights
are loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from stack.config.edm import EdmPretrainRecipe, EdmTeacher
from stack.config.schema import AnyRecipe, DistillRecipe, PretrainRecipe, SDTeacher
from stack.nets.edm import edm_network
from stack.nets.edm_blocks import EdmConfig
from stack.nets.edm_files import edm_config
from stack.nets.heads import ConvHead
from stack.nets.hub import pipeline_folder
from stack.nets.weights import STEMS, variant_of, weights_name
from stack.train.build import stream_of
from stack.train.build_edm import teacher_config
from stack.train.build_suite import networks_of
from stack.train.pretrain import POSITIONS, new_unet, new_vae
from stack.util.errors import UserError
from stack.util.files import read_json
from stack.verbs.doctor_findings import Finding
from stack.verbs.doctor_machine import Shape
from stack.verbs.fetch_networks import fault_of, has_checksums

_FLOAT = 4
"""Bytes of a float32."""
_ADAM = 3
"""A trained weight and its two moments."""
_SMALL = 1 << 20
"""Bytes of a checkpoint of the 2-D mixture, at most."""


def attention_shapes(recipe: AnyRecipe) -> list[Shape]:
    """The attention layers of the UNet, each kind once."""
    if isinstance(recipe, PretrainRecipe):
        unet = recipe.unet
        heads = [unet.heads] * len(unet.channels)
        return _shapes(unet.channels, unet.attention, heads, recipe.text.width)
    if isinstance(recipe, EdmPretrainRecipe) or not isinstance(recipe.teacher, SDTeacher):
        return []  # EDM's is torch's operator, which is everywhere.
    config = _unet_config(_folder(recipe.teacher))
    channels = config["block_out_channels"]
    # Stable Diffusion's configurations name the number of heads attention_head_dim.
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    heads = heads if isinstance(heads, list) else [heads] * len(channels)
    crossed = ["CrossAttn" in kind for kind in config["down_block_types"]]
    return _shapes(channels, crossed, heads, config["cross_attention_dim"])


def checkpoint_bytes(recipe: AnyRecipe) -> int:
    """Bytes of a checkpoint: trained weights with Adam's moments, and averages, in float32."""
    if isinstance(recipe, PretrainRecipe):
        weights = _pretrained_weights(recipe)
        return _FLOAT * (_ADAM + 1) * weights
    if isinstance(recipe, EdmPretrainRecipe):
        stream = stream_of(recipe.data, recipe.seed)
        return _FLOAT * (_ADAM + 1) * _edm_weights(teacher_config(recipe, stream))
    if isinstance(recipe.teacher, SDTeacher):
        folder = _folder(recipe.teacher)
        network = unet_weights(folder)
        heads = _head_weights(recipe, _widths_by_size(_unet_config(folder)))
    elif isinstance(recipe.teacher, EdmTeacher):
        config = edm_config(recipe.teacher.path)
        network = _edm_weights(config)
        heads = _head_weights(recipe, dict(zip(config.resolutions, config.widths, strict=True)))
    else:
        return _SMALL
    return _FLOAT * (_ADAM * (2 * network + heads) + len(recipe.averages) * network)


def edm_classes(recipe: DistillRecipe | EdmPretrainRecipe) -> int:
    """Classes of a recipe's EDM network, to be trained or distilled."""
    if isinstance(recipe, EdmPretrainRecipe):
        return recipe.edm.classes
    assert isinstance(recipe.teacher, EdmTeacher)
    return edm_config(recipe.teacher.path).label_dim


def _edm_weights(config: EdmConfig) -> int:
    with torch.device("meta"):
        return _size(edm_network(config))


def unet_weights(folder: Path) -> int:
    """Parameters of a pipeline's UNet, from the headers of its files.

    Raises:
        UserError: it has none.
    """
    unet = folder / "unet"
    name = weights_name(STEMS["unet"], variant_of(unet))  # Beside it may lie other variants.
    parts = name.replace(".safetensors", "-*-of-*.safetensors")
    files = [*unet.glob(name)] or [*unet.glob(parts)]
    if not files:
        raise UserError(f"{folder}/unet/*.safetensors: missing; the teacher has no UNet")
    total = 0
    for path in files:
        with safe_open(path, "pt") as weights:
            names = weights.keys()
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    return total


def metric_networks(recipe: AnyRecipe, *, hashed: bool = True) -> Iterator[Finding]:
    """Whether the networks of metrics are whole, in the hub's cache or where they are named. A job
    that trains needs them only where its quick evaluation looks through them; of others, gigabytes
    that ``stack fetch`` has checked, only the sizes are compared.

    Args:
        hashed: compare checksums of what is needed, which one rank of a node does for all.
    """
    rows = networks_of(recipe)
    evaluation = recipe.evaluation if isinstance(recipe, DistillRecipe) else None
    needed = evaluation and evaluation.quick_every and evaluation.quick_suite != "digits"
    for name, told in rows:
        read = bool(needed or name == "inception") and has_checksums(name, told)
        if fault := fault_of(name, told, hashed=read and hashed):
            yield Finding("fail" if needed else "warn", f"evaluation.networks.{name}: {fault}")
        else:
            yield Finding("ok", f"{told}: {'whole' if read else 'there'} ({name})")
    if not rows:
        yield Finding("ok", "none named")


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


def _widths_by_size(config: dict[str, Any]) -> dict[int, int]:
    """Channels of a UNet's feature maps by their size."""
    channels = config["block_out_channels"]
    return {config["sample_size"] >> level: n for level, n in enumerate(channels)}


def _head_weights(recipe: DistillRecipe, by_size: dict[int, int]) -> int:
    for size in recipe.gan.resolutions:
        if size not in by_size:
            raise UserError(
                f"gan.resolutions: {size}: the teacher has feature maps of sizes "
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
