"""Classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """uncond + w (cond - uncond).

    In x0 space or in the network's own, which is the same: at a fixed x_t they are affine.
    """
    return unconditional + weight * (conditional - unconditional)
