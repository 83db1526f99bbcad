"""Real digits in six colours, drawn in memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

NAMES = {
    "digit": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "colour": ["red", "green", "blue", "yellow", "magenta", "cyan"],
}
RGB = ((235, 40, 40), (40, 205, 60), (60, 90, 255), (245, 225, 40), (225, 60, 225), (40, 220, 225))


class Digits(NamedTuple):
    images: Tensor  # uint8 (N, 3, 32, 32)
    labels: dict[str, Tensor]
    scan: Tensor
    names: dict[str, list[str]]


@pytest.fixture(scope="session")
def digits() -> Digits:
    from sklearn.datasets import load_digits

    scans, answers = load_digits(return_X_y=True)
    grey = [
        np.asarray(Image.fromarray(scan.reshape(8, 8).astype(np.uint8) * 15).resize((32, 32)))
        for scan in scans
    ]
    ink = torch.from_numpy(np.stack(grey)).float() / 240
    images = (ink[:, None, None] * torch.tensor(RGB)[:, :, None, None]).clamp(0, 255).byte()
    labels = {
        "digit": torch.from_numpy(answers).long().repeat_interleave(len(RGB)),
        "colour": torch.arange(len(RGB)).repeat(len(scans)),
    }
    scan = torch.arange(len(scans)).repeat_interleave(len(RGB))
    return Digits(images.flatten(0, 1), labels, scan, NAMES)
