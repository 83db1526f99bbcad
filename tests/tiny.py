"""Networks small enough for a test, and the plainest way of training one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from stack.diffusion.schedule import DiscreteSchedule
from stack.nets.sd15 import SDDenoiser

WIDTH = 8
"""D of the text states."""


def tiny_unet(
    channels: Sequence[int] = (8, 16), *, size: int = 4, seed: int = 0
) -> UNet2DConditionModel:
    """A UNet2DConditionModel in SD v1.5's layout: cross-attention in all levels but one end."""
    torch.manual_seed(seed)
    levels = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=4,
        out_channels=4,
        block_out_channels=tuple(channels),
        down_block_types=("CrossAttnDownBlock2D",) * levels + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * levels,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def tiny_denoiser(
    parameterization: str = "v_prediction",
    *,
    resolutions: Sequence[int] = (4, 2),
    seed: int = 0,
    bf16: bool = False,
) -> SDDenoiser:
    """An SDDenoiser over :func:`tiny_unet`; latents (B, 4, 4, 4), context (B, L, WIDTH)."""
    return SDDenoiser(
        tiny_unet(seed=seed),
        DiscreteSchedule.scaled_linear(),
        parameterization,
        resolutions=resolutions,
        bf16=bf16,
    )


class PlainWeights:
    """fdistill's ``Trained`` by gradient descent: an update is -lr times the gradient."""

    def __init__(self, name: str, module: nn.Module, lr: float = 0.1) -> None:
        self.name, self.module, self.steps = name, module, 0
        self.optimizer = torch.optim.SGD(module.parameters(), lr=lr)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip(self) -> Tensor:
        return nn.utils.clip_grad_norm_(self.module.parameters(), 1e9)

    def step(self) -> None:
        self.optimizer.step()
        self.steps += 1
        self.discard()

    def discard(self) -> None:
        self.optimizer.zero_grad()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.module.requires_grad_(False)
        try:
            yield
        finally:
            self.module.requires_grad_(True)


def flat(module: nn.Module) -> Tensor:
    """A copy of all parameters in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
