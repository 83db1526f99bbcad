"""Configuration and parts of the EDM networks.

Attributes are named as in the state dicts of the published weights.

Architectures: DDPM++ of Song et al. 2021 (arXiv 2011.13456) and ADM of Dhariwal & Nichol 2021
(arXiv 2105.05233), as Karras et al. 2022 (arXiv 2206.00364, Appendix F) set them up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from stack.diffusion.karras import SIGMA_DATA

Resample = Callable[[Tensor], Tensor]


Multiple = Annotated[int, Field(ge=1, le=64)]
"""Of the channels."""
Size = Annotated[int, Field(ge=1, le=1024)]
"""Of a picture or a feature map, pixels."""


def most_levels(size: int) -> int:
    """Resolutions that a picture of a size can have: each is half of the one before."""
    return (size & -size).bit_length()


class EdmConfig(BaseModel):
    """What determines a network; the names are those of NVIDIA's constructors.

    Widths are multiples of ``model_channels``: ``channel_mult`` per resolution, from the full one
    down, ``channel_mult_emb`` of the embedding. ``num_blocks``: residual blocks per resolution.
    ``attn_resolutions`` may name sizes that the network does not have, as published lists do. The
    upper bounds are far beyond any such network; a hostile file could ask for anything.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Literal["ddpm++", "adm"]
    img_resolution: Size
    img_channels: int = Field(default=3, ge=1, le=64)
    label_dim: int = Field(default=0, ge=0, le=1_000_000)
    augment_dim: int = Field(default=0, ge=0, le=1024)
    model_channels: int = Field(ge=4, le=4096, multiple_of=4)
    channel_mult: tuple[Multiple, ...] = Field(min_length=1, max_length=8)
    channel_mult_emb: Multiple = 4
    num_blocks: int = Field(ge=1, le=32)
    attn_resolutions: tuple[Size, ...] = Field(max_length=16)
    sigma_data: float = Field(default=SIGMA_DATA, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _halves_evenly(self) -> EdmConfig:
        levels, most = len(self.channel_mult), most_levels(self.img_resolution)
        if levels > most:
            raise ValueError(
                f"channel_mult: {levels} levels, but a picture of {self.img_resolution} pixels can "
                f"be halved evenly for {most} of them"
            )
        return self

    @property
    def resolutions(self) -> list[int]:
        """Sizes of the feature maps, from the full one down."""
        return [self.img_resolution >> level for level in range(len(self.channel_mult))]

    @property
    def widths(self) -> list[int]:
        """Channels at each of :attr:`resolutions`."""
        return [self.model_channels * factor for factor in self.channel_mult]

    @property
    def embedding(self) -> int:
        """Width of the embedding."""
        return self.model_channels * self.channel_mult_emb


CIFAR10 = EdmConfig(
    architecture="ddpm++",
    img_resolution=32,
    label_dim=10,
    augment_dim=9,
    model_channels=128,
    channel_mult=(2, 2, 2),
    num_blocks=4,
    attn_resolutions=(16,),
)
"""edm-cifar10-32x32-cond-vp; -uncond-vp has label_dim 0. 55.7M parameters."""
IMAGENET64 = EdmConfig(
    architecture="adm",
    img_resolution=64,
    label_dim=1000,
    model_channels=192,
    channel_mult=(1, 2, 3, 4),
    num_blocks=3,
    attn_resolutions=(32, 16, 8),
)
"""edm-imagenet-64x64-cond-adm. 295.9M parameters."""


def same(x: Tensor) -> Tensor:
    """No change of size."""
    return x


def halve(x: Tensor) -> Tensor:
    """Means of 2x2 pixels."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Every pixel four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def keep_filter(module: nn.Module) -> None:
    """The 2x2 box that :func:`halve` and :func:`double` apply, as published weights store it."""
    module.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))


class Conv(nn.Conv2d):
    """A convolution that keeps the size its input has after ``resample``."""

    def __init__(self, inputs: int, outputs: int, kernel: int, resample: Resample = same) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.resample = resample
        if resample is not same:
            keep_filter(self)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.resample(x))


class Resampling(nn.Module):
    """``resample`` alone."""

    def __init__(self, resample: Resample) -> None:
        super().__init__()
        self.resample = resample
        keep_filter(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class FloatLinear(nn.Linear):
    """In float32 whatever the weights' precision is: bf16 would blur the noise level's embedding
    by some 1% of sigma. To be called outside autocast."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.weight.float(), bias)


class FloatGroupNorm(nn.GroupNorm):
    """In float32 whatever the activations' precision is, as CUDA's autocast has it; in bf16, CPUs
    take three times as long."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """32 groups, or the most that divide the channels and have 4 of them at least."""
    most = min(32, channels // 4)
    groups = next(count for count in range(most, 0, -1) if channels % count == 0)
    return FloatGroupNorm(groups, channels, eps)


def waves(noise: Tensor, channels: int, *, span: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (B, channels / 2), of noise (B,) times 10^(-4 i / span)."""
    steps = torch.arange(channels // 2, dtype=torch.float32, device=noise.device)
    angle = noise.float()[:, None] * torch.exp(-math.log(10_000) / span * steps)
    return angle.cos(), angle.sin()


def xavier(layer: nn.Linear | nn.Conv2d, gain: float = 1.0) -> None:
    """Weights uniform with variance gain^2 2 / (fan in + fan out), biases zero."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def as_torch(layer: nn.Linear | nn.Conv2d, gain: float = 1.0) -> None:
    """``gain`` times what torch's constructor drew: uniform in +-1 / sqrt(fan in)."""
    for parameter in layer.parameters():
        parameter.mul_(gain)


@dataclass(frozen=True)
class Style:
    """What tells the blocks of DDPM++ from those of ADM.

    Args:
        eps: of the group norms.
        shrink: factor after every sum of two branches.
        scales: the embedding scales features after the second norm, besides shifting them; it
            only shifts them, and before that norm, otherwise.
        projects: a skip that changes size alone has a 1x1 convolution too.
        head_channels: channels of an attention head at least; None for a single head.
        start: initializes a layer: (layer, gain).
        last_gain, attention_gain: of the last layer of a branch, and of queries, keys and values.
        dropout: probability before the second convolution.
    """

    eps: float
    shrink: float
    scales: bool
    projects: bool
    head_channels: int | None
    start: Callable[[nn.Linear | nn.Conv2d, float], None]
    last_gain: float
    attention_gain: float
    dropout: float = 0.0

    def heads(self, channels: int) -> int:
        """Attention heads over so many channels, which they divide evenly."""
        most = 1 if self.head_channels is None else max(1, channels // self.head_channels)
        return next(heads for heads in range(most, 0, -1) if channels % heads == 0)


DDPMPP = Style(
    eps=1e-6,
    shrink=math.sqrt(0.5),
    scales=False,
    projects=True,
    head_channels=None,
    start=xavier,
    last_gain=1e-5,
    attention_gain=math.sqrt(0.2),
)
ADM = Style(
    eps=1e-5,
    shrink=1.0,
    scales=True,
    projects=False,
    head_channels=64,
    start=as_torch,
    last_gain=0.0,
    attention_gain=1.0,
)


class Block(nn.Module):
    """A residual block, then self-attention if ``attends``: (B, inputs, H, W) to (B, outputs,
    H', W').

    Args:
        width: of the embedding. joins: takes a skip from the encoder, counted in ``inputs``.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        style: Style,
        *,
        resample: Resample = same,
        attends: bool = False,
        joins: bool = False,
    ) -> None:
        super().__init__()
        self.outputs, self.style, self.joins = outputs, style, joins
        self.heads = style.heads(outputs) if attends else 0
        self.norm0 = group_norm(inputs, style.eps)
        self.conv0 = Conv(inputs, outputs, 3, resample)
        self.affine = nn.Linear(width, outputs * (2 if style.scales else 1))
        self.norm1 = group_norm(outputs, style.eps)
        self.conv1 = Conv(outputs, outputs, 3)
        for layer in (self.conv0, self.affine):
            style.start(layer, 1.0)
        style.start(self.conv1, style.last_gain)
        self.skip = self._skip(inputs, outputs, resample)
        if self.heads:
            self.norm2 = group_norm(outputs, style.eps)
            self.qkv = Conv(outputs, 3 * outputs, 1)
            self.proj = Conv(outputs, outputs, 1)
            style.start(self.qkv, style.attention_gain)
            style.start(self.proj, style.last_gain)

    def _skip(self, inputs: int, outputs: int, resample: Resample) -> nn.Module:
        if inputs != outputs or (resample is not same and self.style.projects):
            skip = Conv(inputs, outputs, 1, resample)
            self.style.start(skip, 1.0)
            return skip
        return nn.Identity() if resample is same else Resampling(resample)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, inputs, H, W), emb (B, width)."""
        h = self.conv0(F.silu(self.norm0(x)))
        told = self.affine(emb)[..., None, None]
        if self.style.scales:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + told)
        h = self.conv1(F.dropout(F.silu(h), self.style.dropout, self.training))
        x = (self.skip(x) + h) * self.style.shrink
        return (x + self._attention(x)) * self.style.shrink if self.heads else x

    def _attention(self, x: Tensor) -> Tensor:
        """Over all pixels. The fused kernels keep logits and softmax in float32 for bf16 inputs
        too. Channels of ``qkv`` run (head, channel of the head, which of the three)."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(batch, self.heads, channels // self.heads, 3, -1)
        q, k, v = (part.transpose(2, 3) for part in qkv.unbind(3))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return self.proj(mixed.reshape(batch, channels, height, width))
