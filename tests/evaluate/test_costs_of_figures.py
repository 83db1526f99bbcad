"""The memory that figures of many features take, in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.forked import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--collapsed", "10")])
def test_memory_follows_from_the_features(options: tuple[str, ...]) -> None:
    """8000 x 512 and twice the samples: some copies of the 33 MB of features more, and noise of the
    allocator's, where the distances of all pairs would be 770 MB more."""
    found = [_costs(samples, 512, *options) for samples in (8_000, 16_000)]
    small, large = (one["peak_bytes"] for one in found)
    features = 2 * 8_000 * 512 * 4
    assert large - small < 12 * features


@pytest.mark.parametrize("points", [1, 10])
def test_a_collapsed_student_costs_little_more(points: int) -> None:
    """3000 features of it, which float32 cannot tell apart: half a gigabyte and half a minute more
    where every pair of them is held and taken from its differences."""
    ordinary, collapsed = _costs(3000, 64), _costs(3000, 64, "--collapsed", str(points))
    assert collapsed["peak_bytes"] < ordinary["peak_bytes"] + 2**28
    seconds = [found["manifolds"]["cpu_seconds"] for found in (ordinary, collapsed)]
    assert seconds[1] < 5 * seconds[0]


def _costs(samples: int, width: int, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.evaluate.costs", str(samples), str(width), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(done.stdout)
