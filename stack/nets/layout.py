"""Memory layout of convolutions."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def channels_last(network: Network) -> Network:
    """Lay weights out with channels last, and let every convolution take its input so, in place.

    Convolutions are fastest in this layout, on CPUs (2x at small sizes) as on tensor cores. The
    weights alone do not see to it: what cuts them over ranks, or steps them in 8 bits, wants them
    in the order of their dimensions, and group norm on CUDA answers in that order too.
    """
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_pre_hook(_settle)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _settle(_: nn.Module, given: tuple[Any, ...]) -> Tensor:
    """Also in autocast's precision, which would else be a second pass over memory."""
    x, low = given[0], given[0].dtype
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        low = torch.get_autocast_dtype(x.device.type)
    return x.to(low, memory_format=torch.channels_last)
