"""Which operator computes a UNet's attention, and how often it reads its text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor

from stack.util.errors import UserError, reason


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


def set_attention(
    unet: UNet2DConditionModel, name: str, device: torch.device, *, bf16: bool = False
) -> None:
    """Let a UNet compute attention by one of ATTENTION, in bfloat16 if it runs under autocast.

    Raises:
        UserError: it does not run on this device; nothing else is taken in its place.
    """
    unet.set_attn_processor(processor(name, head_sizes(unet), device, bf16=bf16))


def processor(name: str, sizes: list[int], device: torch.device, *, bf16: bool = False) -> Any:
    """One of ATTENTION, which runs with heads of these sizes.

    Raises:
        UserError: it does not.
    """
    if name == "xformers":
        _try_xformers(sizes, device, torch.bfloat16 if bf16 else torch.float32)
    return ATTENTION[name]()


@contextmanager
def text_read_once(unet: UNet2DConditionModel, ids: Tensor) -> Iterator[None]:
    """Inside the context, keys and values of texts are computed at the first reading, once for
    equal ones, and kept: a sampler gives the same texts at every step. Without gradient.

    Args:
        ids: int64 (B, 77), of the texts whose states (B, 77, D) are all that the UNet is given.
    """
    distinct, place = ids.unique(dim=0, return_inverse=True)
    first = torch.empty_like(place[: len(distinct)])
    first[place] = torch.arange(len(ids), device=ids.device)  # Any of those that are equal.

    def once(read: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        known: list[tuple[Tensor, Tensor]] = []

        def forward(states: Tensor) -> Tensor:
            if not known:
                several = len(distinct) < len(ids)
                told = read(states[first])[place] if several else read(states)
                known.append((states, told))
            return known[0][1] if states is known[0][0] else read(states)

        return forward

    layers = [
        layer
        for part in unet.modules()
        if isinstance(part, Attention) and part.is_cross_attention
        for layer in (part.to_k, part.to_v)
    ]
    for layer in layers:
        layer.forward = once(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def head_sizes(unet: UNet2DConditionModel) -> list[int]:
    """Channels of a head, of all kinds of attention there are."""
    parts = (part for part in unet.modules() if isinstance(part, Attention))
    return sorted({part.inner_dim // part.heads for part in parts})


def _try_xformers(sizes: list[int], device: torch.device, dtype: torch.dtype) -> None:
    """Forward and backward of every head size: its kernels differ in what they take."""
    try:
        from xformers.ops import memory_efficient_attention

        for size in sizes:
            query = torch.zeros(1, 16, 1, size, device=device, dtype=dtype, requires_grad=True)
            memory_efficient_attention(query, query, query).sum().backward()
    except (ImportError, NotImplementedError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"compute.attention: xformers: does not run on {device} ({reason(error)}); use sdpa"
        ) from None
