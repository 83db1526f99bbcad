"""The memory that figures of many features take, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.pipeline import ROOT


@pytest.mark.slow
def test_memory_follows_from_the_features() -> None:
    """8000 x 512 and twice the samples: some copies of the 33 MB of features more, and noise of the
    allocator's, where the distances of all pairs would be 770 MB more."""
    small, large = (_peak_bytes(samples, 512) for samples in (8_000, 16_000))
    features = 2 * 8_000 * 512 * 4
    assert large - small < 12 * features


def _peak_bytes(samples: int, width: int) -> int:
    command = [sys.executable, "-m", "tests.evaluate.costs", str(samples), str(width)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["peak_bytes"]
