"""The precision that a network's forward runs in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[object]:
    """bf16 autocast on a device, or nothing; nothing is also there for the meta device."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
