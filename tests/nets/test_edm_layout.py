"""Names, shapes and counts of the published EDM networks, written out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from stack.nets.edm import edm_network
from stack.nets.edm_blocks import CIFAR10, IMAGENET64, EdmConfig

Shapes = dict[str, tuple[int, ...]]
UNCONDITIONAL = CIFAR10.model_copy(update={"label_dim": 0})

COUNTS = {
    "edm-cifar10-32x32-cond-vp": (CIFAR10, 55_735_299),
    "edm-cifar10-32x32-uncond-vp": (UNCONDITIONAL, 55_733_891),
    "edm-imagenet-64x64-cond-adm": (IMAGENET64, 295_899_267),
}

DDPMPP = """
enc.32x32_block0 128 256          enc.32x32_block1 256 256          enc.32x32_block2 256 256
enc.32x32_block3 256 256          enc.16x16_down 256 256 size       enc.16x16_block0 256 256 attn
enc.16x16_block1 256 256 attn     enc.16x16_block2 256 256 attn     enc.16x16_block3 256 256 attn
enc.8x8_down 256 256 size         enc.8x8_block0 256 256            enc.8x8_block1 256 256
enc.8x8_block2 256 256            enc.8x8_block3 256 256            dec.8x8_in0 256 256 attn
dec.8x8_in1 256 256               dec.8x8_block0 512 256            dec.8x8_block1 512 256
dec.8x8_block2 512 256            dec.8x8_block3 512 256            dec.8x8_block4 512 256
dec.16x16_up 256 256 size         dec.16x16_block0 512 256          dec.16x16_block1 512 256
dec.16x16_block2 512 256          dec.16x16_block3 512 256          dec.16x16_block4 512 256 attn
dec.32x32_up 256 256 size         dec.32x32_block0 512 256          dec.32x32_block1 512 256
dec.32x32_block2 512 256          dec.32x32_block3 512 256          dec.32x32_block4 384 256
"""
ADM = """
enc.64x64_block0 192 192          enc.64x64_block1 192 192          enc.64x64_block2 192 192
enc.32x32_down 192 192 size       enc.32x32_block0 192 384 attn     enc.32x32_block1 384 384 attn
enc.32x32_block2 384 384 attn     enc.16x16_down 384 384 size       enc.16x16_block0 384 576 attn
enc.16x16_block1 576 576 attn     enc.16x16_block2 576 576 attn     enc.8x8_down 576 576 size
enc.8x8_block0 576 768 attn       enc.8x8_block1 768 768 attn       enc.8x8_block2 768 768 attn
dec.8x8_in0 768 768 attn          dec.8x8_in1 768 768               dec.8x8_block0 1536 768 attn
dec.8x8_block1 1536 768 attn      dec.8x8_block2 1536 768 attn      dec.8x8_block3 1344 768 attn
dec.16x16_up 768 768 size         dec.16x16_block0 1344 576 attn    dec.16x16_block1 1152 576 attn
dec.16x16_block2 1152 576 attn    dec.16x16_block3 960 576 attn     dec.32x32_up 576 576 size
dec.32x32_block0 960 384 attn     dec.32x32_block1 768 384 attn     dec.32x32_block2 768 384 attn
dec.32x32_block3 576 384 attn     dec.64x64_up 384 384 size         dec.64x64_block0 576 192
dec.64x64_block1 384 192          dec.64x64_block2 384 192          dec.64x64_block3 384 192
"""
"""Name, channels in and out, and what else the block has."""


def rows(table: str) -> list[tuple[str, int, int, str]]:
    words = table.split()
    starts = [i for i, word in enumerate(words) if "." in word] + [len(words)]
    parts = [words[i:j] for i, j in pairwise(starts)]
    return [(p[0], int(p[1]), int(p[2]), p[3] if len(p) > 3 else "") for p in parts]


def block(inputs: int, outputs: int, extra: str, width: int, adm: bool) -> Shapes:
    shapes: Shapes = {
        "norm0.weight": (inputs,),
        "norm0.bias": (inputs,),
        "conv0.weight": (outputs, inputs, 3, 3),
        "conv0.bias": (outputs,),
        "affine.weight": (outputs * (2 if adm else 1), width),
        "affine.bias": (outputs * (2 if adm else 1),),
        "norm1.weight": (outputs,),
        "norm1.bias": (outputs,),
        "conv1.weight": (outputs, outputs, 3, 3),
        "conv1.bias": (outputs,),
    }
    if inputs != outputs or (extra == "size" and not adm):
        shapes |= {"skip.weight": (outputs, inputs, 1, 1), "skip.bias": (outputs,)}
    if extra == "size":
        shapes |= {f"{part}.resample_filter": (1, 1, 2, 2) for part in ("conv0", "skip")}
    if extra == "attn":
        shapes |= {"norm2.weight": (outputs,), "norm2.bias": (outputs,)}
        shapes |= {"qkv.weight": (3 * outputs, outputs, 1, 1), "qkv.bias": (3 * outputs,)}
        shapes |= {"proj.weight": (outputs, outputs, 1, 1), "proj.bias": (outputs,)}
    return shapes


def published(config: EdmConfig) -> Shapes:
    adm = config is IMAGENET64
    base, width, size = (192, 768, 64) if adm else (128, 512, 32)
    wide = 192 if adm else 256
    shapes: Shapes = {
        "map_layer0.weight": (width, base),
        "map_layer0.bias": (width,),
        "map_layer1.weight": (width, width),
        "map_layer1.bias": (width,),
        f"enc.{size}x{size}_conv.weight": (base, 3, 3, 3),
        f"enc.{size}x{size}_conv.bias": (base,),
    }
    norm, conv = ("out_norm", "out_conv") if adm else ("dec.32x32_aux_norm", "dec.32x32_aux_conv")
    shapes |= {f"{norm}.weight": (wide,), f"{norm}.bias": (wide,)}
    shapes |= {f"{conv}.weight": (3, wide, 3, 3), f"{conv}.bias": (3,)}
    if adm:
        shapes["map_label.weight"] = (768, 1000)
    else:
        shapes["map_augment.weight"] = (128, 9)
    if config is CIFAR10:
        shapes |= {"map_label.weight": (128, 10), "map_label.bias": (128,)}
    for name, inputs, outputs, extra in rows(ADM if adm else DDPMPP):
        parts = block(inputs, outputs, extra, width, adm)
        shapes |= {f"{name}.{part}": shape for part, shape in parts.items()}
    return shapes


@pytest.mark.parametrize("name", COUNTS)
def test_state_dict_is_the_published_one(name: str) -> None:
    config, _ = COUNTS[name]
    with torch.device("meta"):
        state = edm_network(config).state_dict()
    assert {part: tuple(tensor.shape) for part, tensor in state.items()} == published(config)


@pytest.mark.parametrize("name", COUNTS)
def test_number_of_parameters(name: str) -> None:
    """55.7M for CIFAR-10, 295.9M for ImageNet-64, as the paper's appendix says."""
    config, count = COUNTS[name]
    with torch.device("meta"):
        network = edm_network(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_the_stored_filter_is_the_one_applied() -> None:
    network = edm_network(CIFAR10.model_copy(update={"model_channels": 4, "num_blocks": 1}))
    filters = [t for n, t in network.state_dict().items() if n.endswith("resample_filter")]
    assert len(filters) == 8
    x = torch.randn(1, 1, 4, 4)
    down, up = network.enc["16x16_down"].skip.resample, network.dec["16x16_up"].skip.resample
    for box in filters:
        torch.testing.assert_close(down(x), torch.nn.functional.conv2d(x, box, stride=2))
        doubled = torch.nn.functional.conv_transpose2d(x, 4 * box, stride=2)
        torch.testing.assert_close(up(x), doubled)
