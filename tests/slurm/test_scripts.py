"""The scripts of slurm/ as files: clean, and taken by a Slurm of the nodes that they ask for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.forked import ROOT
from tests.slurm.cluster import Cluster

SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck() -> None:
    scripts = [*SCRIPTS, *(ROOT / "slurm").glob("*.sh")]
    done = subprocess.run(
        ["shellcheck", "-x", "-P", ROOT, *scripts], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_slurm_takes_every_script(slurm: Cluster, script: Path) -> None:
    """By its own headers, on eight nodes of eight GPUs."""
    slurm.run("sbatch", "--test-only", "--partition=large", str(script))
