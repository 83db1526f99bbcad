"""Random numbers as a function of (seed, iteration, role, position), and of nothing else.

Every draw of a training iteration is keyed by the sample's position in the global batch, so the
noise a sample sees does not depend on the rank, the micro-batch or the device that computes it.
The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC'11) in integer tensor arithmetic: no state to save, any element without the ones before it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: Sequence[Tensor | int], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 of a 128-bit counter (four broadcastable int64 words) under a 64-bit key.

    Returns four int64 tensors that hold uint32 words.
    """
    device = next((c.device for c in counter if isinstance(c, Tensor)), None)
    # A number is written by the device itself; copied to a GPU, it would hold up the host.
    words = (c if isinstance(c, Tensor) else torch.full((), c, device=device) for c in counter)
    c0, c1, c2, c3 = torch.broadcast_tensors(*words)
    k0, k1 = key
    for _ in range(10):
        # The product of two uint32 wraps in int64, but its bits are right: mask after the shift.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _words(count: int, seed: int, iteration: int, role: str, positions: Tensor) -> Tensor:
    """``count`` uint32 words (a multiple of 4) per position: int64 (B, count)."""
    digest = hashlib.blake2b(f"{seed}/{role}".encode(), digest_size=8).digest()
    key = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"))
    block = torch.arange(count // 4, device=positions.device)
    counter = (block, positions[:, None], iteration & _MASK, iteration >> 32)
    return torch.stack(philox4x32(counter, key), dim=-1).flatten(1)


def uniform(
    shape: Sequence[int], *, seed: int, iteration: int, role: str, positions: Tensor
) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24.

    Args:
        shape: shape of one sample's draw; ``()`` for one number a sample.
        positions: (B,) int64, each sample's position in the global batch.

    Returns: (B, *shape) float32 on ``positions``' device.
    """
    count = math.prod(shape)
    words = _words(-(-count // 4) * 4, seed, iteration, role, positions)[:, :count]
    return ((words >> 8).float() * 2.0**-24).reshape(len(positions), *shape)


def normal(
    shape: Sequence[int], *, seed: int, iteration: int, role: str, positions: Tensor
) -> Tensor:
    """Standard normal numbers by Box-Muller; arguments and result as for :func:`uniform`."""
    count = math.prod(shape)
    words = _words(-(-count // 4) * 4, seed, iteration, role, positions)
    first, second = words[:, 0::2], words[:, 1::2]
    # (word + 1/2) / 2^32 lies inside (0, 1), so the logarithm is finite.
    radius = ((first.double() + 0.5) * 2.0**-32).log().mul(-2).sqrt()
    angle = second.double() * (2 * math.pi * 2.0**-32)
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return pairs.flatten(1)[:, :count].float().reshape(len(positions), *shape)
