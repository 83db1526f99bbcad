"""FSDP2 on a GPU, by NCCL: features, and steps of torch's and torchao's AdamW."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cuda.gpu import needs_gpu
from tests.forked import ROOT

pytestmark = [needs_gpu, pytest.mark.slow]


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("blocks", ["plain", "compiled"])
def test_a_single_rank(kind: str, blocks: str) -> None:
    command = [sys.executable, "-m", "tests.cuda.gpu_ranks", kind, blocks]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr
