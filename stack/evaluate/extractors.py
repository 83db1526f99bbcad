"""What the feature networks of this room share: who they are, and arithmetic that repeats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from stack.evaluate.features import FeatureExtractor
from stack.util.errors import UserError
from stack.util.files import sha256_file

_WEIGHTS = (".safetensors", ".json", ".txt")


class KnownExtractor(FeatureExtractor, Protocol):
    """A feature extractor that can be told from others, so that its features can be kept."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal weights, resizing included."""


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a model folder's weights, configs and vocabulary."""
    files = sorted(file for file in folder.iterdir() if file.suffix in _WEIGHTS)
    lines = (f"{file.name} {sha256_file(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def need(path: Path, what: str, source: str) -> None:
    """Raise a UserError that says where ``path`` comes from, unless it is there."""
    if not path.exists():
        raise UserError(f"{path}: no such file; {what} comes from {source}")


def middle(images: Tensor) -> Tensor:
    """The largest square in the middle of pictures (B, 3, H, W)."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


@contextmanager
def exact() -> Iterator[None]:
    """Full float32 and repeatable kernels: TF32 and bf16 move features by a thousandth, and break
    the bounds that distances rely on."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
