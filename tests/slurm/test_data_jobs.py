"""The job arrays that prepare data, on a real Slurm."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.merge import merge
from data_prep.verify import verify
from tests.data_prep.picture_server import PictureServer, rows_file, running
from tests.pipeline import World
from tests.slurm.cluster import Cluster, cluster, missing, until
from tests.slurm.job import PATIENCE, Job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=f"no Slurm: {missing()}"),
]
TASK = ["--ntasks-per-node=1", "--gpus-per-node=0", "-N1"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm") / "root", nodes=2) as made:
        yield made


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with running(PictureServer()) as server:
        yield server


def download(slurm: Cluster, world: World, folder: Path, array: str, **env: str) -> Job:
    """coyo_download.sbatch of the rows in a folder, at 16 pixels."""
    options = ["--resolution=16", "--samples-per-shard=4", "--allow-private", "--per-host=2"]
    env |= {"ROWS": str(folder / "rows"), "SHARDS": str(folder / "shards"), "PAUSE": "0"}
    script = ["--mem=1G", "slurm/coyo_download.sbatch", *options]
    return Job(slurm, world, folder / "x", *TASK, f"--array={array}", *script, **env)


def test_parts_of_the_rows_by_an_array(slurm: Cluster, world: World, tmp_path, server) -> None:
    urls = [f"{server.url}/{'flaky' if n % 5 == 4 else 'jpg'}/{n}" for n in range(20)]
    rows_file(tmp_path / "rows/00000.parquet", urls)
    job = download(slurm, world, tmp_path, "0-2", PASSES="1")
    parts = [tmp_path / f"shards/part-{k:05d}-of-00003" for k in range(3)]
    until(lambda: all((p / "manifest.json").exists() for p in parts), job.told(), PATIENCE)
    job.wait("COMPLETED")
    assert merge(tmp_path / "shards").samples == 20
    assert verify(tmp_path / "shards").samples == 20


def test_a_part_that_runs_out_of_time_goes_on(slurm: Cluster, world: World, tmp_path, server):
    """As Slurm signals the shell before the limit; so often, and no more."""
    rows_file(tmp_path / "rows/00000.parquet", [f"{server.url}/slow/{n}" for n in range(60)])
    job = download(slurm, world, tmp_path, "0-0", PASSES="1", MAX_STOPS="1")
    part = tmp_path / "shards/part-00000-of-00001"
    until(lambda: (part / "000002.tar").exists(), job.told(), PATIENCE)
    slurm.run("scancel", "--signal=USR1", "--batch", job.number)
    until(lambda: job.restarts >= 1, job.told(), PATIENCE)
    before = (part / "000001.tar").stat().st_mtime_ns
    time.sleep(3)  # A credential of the same second would still count as revoked.

    def under_way() -> bool:
        slurm.run("scontrol", "update", f"jobid={job.number}", "StartTime=now", check=False)
        return (part / "000003.tar").exists() and job.state == "RUNNING"

    until(under_way, job.told(), PATIENCE)
    slurm.run("scancel", "--signal=USR1", "--batch", job.number)
    until((part / "manifest.json").exists, job.told(), PATIENCE)
    job.wait("COMPLETED")
    assert job.restarts == 1
    assert "has begun anew 1 times (MAX_STOPS); submit it again" in job.told()
    assert verify(part).samples == 60
    assert (part / "000001.tar").stat().st_mtime_ns == before


@pytest.mark.parametrize(("array", "parts", "made"), [("0-1", "", "abc"), ("1", "2", "b")])
def test_latents_of_several_folders(
    slurm: Cluster, world: World, tmp_path: Path, array: str, parts: str, made: str
) -> None:
    """More folders than tasks; then one task of two alone."""
    job = latents(slurm, world, tmp_path, array, PARTS=parts)
    files = [tmp_path / "latents" / name / "manifest.json" for name in made]
    until(lambda: all(file.exists() for file in files), job.told(), PATIENCE)
    assert sorted(path.name for path in (tmp_path / "latents").iterdir()) == list(made)


def test_an_array_with_gaps_needs_its_size(slurm: Cluster, world: World, tmp_path: Path) -> None:
    job = latents(slurm, world, tmp_path, "1,3", PARTS="")
    until(lambda: "error: PARTS: unset" in job.told(), "a refusal")
    assert not (tmp_path / "latents").exists()


def latents(slurm: Cluster, world: World, folder: Path, array: str, **env: str) -> Job:
    """coyo_latents.sbatch over three folders."""
    for name in ("a", "b", "c"):
        shutil.copytree(world.shards, folder / "shards" / name)
    env |= {"SHARDS": str(folder / "shards"), "DATA": str(folder / "latents"), "DEVICE": "cpu"}
    tasks = [f"--array={array}", *TASK, "--gpus=1"]
    return Job(slurm, world, folder / "x", *tasks, "slurm/coyo_latents.sbatch", **env)
