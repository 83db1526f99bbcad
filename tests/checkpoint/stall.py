"""How long training waits for a save, in the background and in the foreground:
``python tests/checkpoint/stall.py FOLDER [MEGABYTES]``, on the disk that is to be measured."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from stack.checkpoint.commit import Contents, Keep
from stack.checkpoint.saver import Saver
from stack.parallel.collectives import ALONE

SAVES = 6


def waits(root: Path, contents: Contents, *, background: bool) -> list[float]:
    """Seconds that each save holds up the caller, the one before being long done."""
    saver, seconds = Saver(root, ALONE, Keep(2), background=background), []
    for step in range(1, SAVES + 1):
        start = time.perf_counter()
        saver.save(step, contents)
        seconds.append(time.perf_counter() - start)
        saver.wait()
    saver.close()
    return seconds


def main(folder: str, megabytes: int = 250) -> None:
    tensors = {f"t{number}": torch.randn(1 << 18) for number in range(megabytes)}
    medians = {}
    for kind, background in (("foreground", False), ("background", True)):
        with tempfile.TemporaryDirectory(dir=folder) as root:
            seconds = waits(Path(root), Contents(tensors), background=background)
        medians[kind] = statistics.median(seconds[1:])
        print(f"{kind}: first {seconds[0]:.3f} s, then {medians[kind]:.3f} s")
    print(f"ratio from the second save on: {medians['background'] / medians['foreground']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
