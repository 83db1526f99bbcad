"""The exact quantile of more numbers than fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

_DIGIT = 16
"""Bits of a number that one pass over the numbers settles."""
_SIGN = np.uint64(1 << 63)


def quantile(chunks: Callable[[], Iterator[np.ndarray]], share: float) -> float | None:
    """numpy's quantile by the method "lower": the largest of the numbers that has at most `share`
    of the others below it. NaN does not count; None if there is nothing else.

    Args:
        chunks: gives the float64 numbers, the same each of the four times it is called.
    """
    rank, prefix = -1, 0
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(1 << _DIGIT, np.int64)
        for chunk in chunks():
            keys = _ordered(chunk[~np.isnan(chunk)])
            if shift + _DIGIT < 64:
                keys = keys[keys >> np.uint64(shift + _DIGIT) == np.uint64(prefix)]
            digits = (keys >> np.uint64(shift)).astype(np.int64) & ((1 << _DIGIT) - 1)
            counts += np.bincount(digits, minlength=len(counts))
        if rank < 0:
            total = int(counts.sum())
            if not total:
                return None
            rank = int(share * (total - 1))
        sums = np.cumsum(counts)
        digit = int(np.searchsorted(sums, rank, side="right"))
        rank -= int(sums[digit] - counts[digit])
        prefix = prefix << _DIGIT | digit
    return _number(prefix)


def _ordered(numbers: np.ndarray) -> np.ndarray:
    """uint64 that compare as the numbers do."""
    bits = numbers.astype(np.float64).view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _number(key: int) -> float:
    bits = np.array([key], np.uint64)
    return float(np.where(bits & _SIGN, bits ^ _SIGN, ~bits).view(np.float64)[0])
