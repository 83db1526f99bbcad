"""Pictures side by side in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_GAP = 2


def save_grid(path: Path, rows: Sequence[Tensor], *, enlarge: int = 2) -> Path:
    """Write rows of uint8 pictures (N, 3, H, W) below each other as a PNG.

    Args:
        enlarge: whole-number magnification, so that small pictures can be looked at.
    """
    columns = max(len(row) for row in rows)
    _, height, width = rows[0].shape[1:]
    canvas = torch.full(
        (3, len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP),
        255,
        dtype=torch.uint8,
    )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row.cpu()):
            top, left = i * (height + _GAP), j * (width + _GAP)
            canvas[:, top : top + height, left : left + width] = picture
    image = Image.fromarray(np.ascontiguousarray(canvas.permute(1, 2, 0).numpy()))
    image = image.resize((image.width * enlarge, image.height * enlarge), Image.Resampling.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path
