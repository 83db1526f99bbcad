"""How fast a sampler is, measured plainly: a warm callable, wall-clock time, the median."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch


@dataclass(frozen=True)
class Speed:
    """What `measure` found. ``seconds`` holds every timed repeat, in order."""

    images_per_second: float
    seconds: tuple[float, ...]
    batch: int
    device: str


def measure(
    generate: Callable[[], object],
    batch: int,
    *,
    device: torch.device | str = "cpu",
    repeats: int = 5,
    warmup: int = 1,
    enough: float = inf,
) -> Speed:
    """Time ``generate``, which makes ``batch`` pictures a call, after ``warmup`` untimed calls; no
    further repeat begins ``enough`` seconds after the first.

    CUDA is synchronised before and after each repeat; images per second is ``batch`` over the
    median repeat, so that one stumble of the machine does not count.
    """
    device = torch.device(device)
    for _ in range(warmup):
        generate()
    seconds: list[float] = []
    while not seconds or (len(seconds) < repeats and sum(seconds) < enough):
        _synchronize(device)
        start = time.perf_counter()
        generate()
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    rate = batch / statistics.median(seconds)
    return Speed(rate, tuple(seconds), batch, device_name(device))


def device_name(device: torch.device | str) -> str:
    """What a reader needs to place a speed: the GPU's name, or the processor's and its threads."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    listing = Path("/proc/cpuinfo")
    text = listing.read_text() if listing.exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    name = model.group(1).strip() if model else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
