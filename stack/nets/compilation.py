"""torch.compile of single blocks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch._dynamo
from torch import nn

_VARIANTS = 1 << 10


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile blocks at their first call of each kind, in place, with sizes as constants. What
    FSDP2 does before and after a block stays outside.

    torch takes blocks of one class for one function, and goes on without compilation after 8
    variants of it; Stable Diffusion's ResNets alone have 14 shapes, in training, frozen, and
    without gradient.
    """
    torch._dynamo.config.recompile_limit = _VARIANTS
    torch._dynamo.config.accumulated_recompile_limit = 8 * _VARIANTS
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False)  # type: ignore[method-assign]
