"""Discriminator heads: one logit per feature map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stack.nets.precision import autocast


class ConvHead(nn.Sequential):
    """A (B, C, H, W) feature map to one logit (B, 1); any C, any size."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.GroupNorm(1, channels),
            nn.Conv2d(channels, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(_groups(width), width),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, 1),
        )


class VectorHead(nn.Sequential):
    """A (B, D) feature vector to one logit (B, 1)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Linear(channels, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )


class MultiHead(nn.Module):
    """One head per feature map; logits (B, heads) in float32."""

    def __init__(self, heads: Sequence[nn.Module], *, bf16: bool = False) -> None:
        super().__init__()
        self.heads, self.bf16 = nn.ModuleList(heads), bf16

    def forward(self, features: list[Tensor]) -> Tensor:
        with autocast(features[0].device, self.bf16):
            # Not channels-last: on CPU, torch 2.13's GroupNorm crashes there in a backward that
            # stops at its weights, which is the one of the discriminator's own loss.
            logits = [
                head(feature.contiguous())
                for head, feature in zip(self.heads, features, strict=True)
            ]
        return torch.cat(logits, dim=1).float()


def _groups(width: int) -> int:
    """The largest divisor of ``width`` up to 32."""
    return next(groups for groups in range(min(32, width), 0, -1) if width % groups == 0)
