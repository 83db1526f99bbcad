"""Which operator computes a UNet's attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from stack.util.errors import UserError


def _xformers() -> Any:
    from diffusers.models.attention_processor import XFormersAttnProcessor

    return XFormersAttnProcessor()


ATTENTION: dict[str, Callable[[], Any]] = {
    "sdpa": AttnProcessor2_0,
    "xformers": _xformers,
    "math": AttnProcessor,
}
"""By name, what makes diffusers' attention processor: torch's operator (on CUDA it picks flash,
cuDNN or memory-efficient attention), xformers' memory-efficient one, or plain matrix products."""


def set_attention(unet: UNet2DConditionModel, name: str, device: torch.device) -> None:
    """Let a UNet compute attention by one of ATTENTION.

    Raises:
        UserError: it does not run on this device; nothing else is taken in its place.
    """
    if name == "xformers":
        _try_xformers(device)
    unet.set_attn_processor(ATTENTION[name]())


def _try_xformers(device: torch.device) -> None:
    try:
        from xformers.ops import memory_efficient_attention

        query = torch.zeros(1, 16, 1, 40, device=device, requires_grad=True)
        memory_efficient_attention(query, query, query).sum().backward()
    except (ImportError, NotImplementedError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"compute.attention: xformers: does not run on {device} ({reason}); use sdpa"
        ) from None
