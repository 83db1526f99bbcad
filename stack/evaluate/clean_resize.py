"""Pictures brought to the 299 pixels that Inception reads, as clean-fid brings them there.

Parmar, Zhang and Zhu (2022), "On aliased resizing and surprising subtleties in GAN evaluation":
each channel by itself through PIL's antialiasing bicubic filter in 32-bit floats (mode "F"),
clipped to [0, 255], never rounded to whole numbers. The aspect ratio is not kept.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from os import cpu_count

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 299


def clean_resize(images: Tensor, side: int = SIDE) -> Tensor:
    """uint8 (B, 3, H, W) on the CPU to float32 (B, 3, side, side) in [0, 255]."""
    channels = images.flatten(0, 1).numpy()
    # PIL lets go of the interpreter while it filters, so threads share the work.
    resized = list(_threads().map(lambda channel: _one_channel(channel, side), channels))
    return torch.from_numpy(np.stack(resized)).view(*images.shape[:2], side, side)


def _one_channel(channel: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(channel.astype(np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 255)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cpu_count())
