"""What figures of many features cost, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.pipeline import ROOT


@pytest.mark.slow
def test_memory_and_time_follow_from_the_features() -> None:
    """At 8000 x 512 and at twice the samples: a few copies of the features more, where all
    distances of a pair of sets would be a gigabyte, and about four times the work on these."""
    small, large = (_costs(samples, 512) for samples in (8_000, 16_000))
    features = 2 * 8_000 * 512 * 4
    assert large["peak_bytes"] - small["peak_bytes"] < 6 * features
    for name, times in (("frechet", 2), ("manifolds", 4)):
        assert large[name]["cpu_seconds"] < 2 * times * small[name]["cpu_seconds"]


def _costs(samples: int, width: int) -> dict:
    command = [sys.executable, "-m", "tests.evaluate.costs", str(samples), str(width)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
