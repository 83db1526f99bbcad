"""What figures of many features cost: ``python -m tests.evaluate.costs SAMPLES WIDTH``, real and
generated ones alike, prints seconds of the wall and of the processor, and the most memory held.
``--collapsed N``: the generated ones lie within a thousandth of N points."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stack.evaluate.frechet import Moments
from stack.evaluate.intervals import Estimate, frechet_estimate, manifold_estimates


def cloud(samples: int, width: int, seed: int) -> Tensor:
    """Correlated features of falling variance that are never below zero, as Inception's."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(64, width, generator=torch.Generator().manual_seed(0)) / 8
    mixing *= torch.logspace(0, -1, 64)[:, None]
    found = torch.randn(samples, 64, generator=generator) @ mixing
    return found.add_(torch.randn(samples, width, generator=generator), alpha=0.05).relu_()


def collapsed(samples: int, width: int, seed: int, points: int) -> Tensor:
    """What a student draws that has a few pictures left, and hardly varies them."""
    generator = torch.Generator().manual_seed(seed)
    few = cloud(points, width, seed).repeat(-(-samples // points), 1)[:samples]
    return few.add_(torch.randn(samples, width, generator=generator), alpha=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("samples", type=int)
    parser.add_argument("width", type=int)
    parser.add_argument("--collapsed", type=int, metavar="N")
    args = parser.parse_args()
    samples, width = args.samples, args.width
    real, fake = cloud(samples, width, 1), cloud(samples, width, 2)
    if args.collapsed:
        fake = collapsed(samples, width, 2, args.collapsed)
    moments = Moments(width)
    for part in real.split(1024):
        moments.update(part)
    found: dict[str, Any] = {"samples": samples, "width": width, "threads": torch.get_num_threads()}

    def timed(name: str, work: Callable[[], dict[str, Estimate]]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        figures = {key: [one.value, one.low, one.high] for key, one in work().items()}
        found[name] = figures | {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
        }

    timed("frechet", lambda: {"frechet_distance": frechet_estimate(fake, moments)})
    timed("manifolds", lambda: manifold_estimates(real, fake))
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
