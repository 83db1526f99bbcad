"""The scripts of slurm/ as files: clean, and taken by a Slurm of the nodes that they ask for."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked import ROOT
from tests.slurm.cluster import Cluster, Node, cluster, missing, until

SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=f"no Slurm: {missing()}"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Eight nodes of eight GPUs, as far as Slurm knows."""
    large = Node(cpus=96, gpus=8, megabytes=500_000)
    with cluster(tmp_path_factory.mktemp("slurm") / "root", nodes=8, node=large) as made:
        yield made


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck() -> None:
    scripts = [*SCRIPTS, *(ROOT / "slurm").glob("*.sh")]
    done = subprocess.run(
        ["shellcheck", "-x", "-P", ROOT, *scripts], capture_output=True, text=True
    )
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_slurm_takes_every_script(slurm: Cluster, script: Path) -> None:
    """By its own headers."""
    slurm.run("sbatch", "--test-only", str(script))


def test_submitted_from_elsewhere(slurm: Cluster, tmp_path: Path) -> None:
    out, small = tmp_path / "out", ["--nodes=1", "--gpus-per-node=0", "--cpus-per-task=1"]
    where = [f"--chdir={tmp_path}", f"--output={out}"]
    script = str(ROOT / "slurm" / "coyo_js.sbatch")
    job = slurm.run("sbatch", "--parsable", *small, *where, script, ROOT=str(tmp_path)).strip()
    until(lambda: slurm.job(job)["JobState"] == "FAILED", "a refusal")
    assert slurm.job(job)["ExitCode"] == "2:0"
    assert out.read_text().splitlines()[1:] == [
        "error: ROOT: not the repository; submit from there, or set ROOT"
    ]
