"""The job arrays that prepare data, on a real Slurm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from data_prep.merge import merge
from data_prep.verify import verify
from tests.data_prep import picture_server
from tests.data_prep.picture_server import PictureServer, photo, rows_file, running
from tests.slurm.cluster import Cluster, until
from tests.slurm.job import Job

pytestmark = pytest.mark.slow

TASK = ["--ntasks-per-node=1", "--gpus-per-node=0", "-N1"]


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with running(PictureServer()) as server:
        yield server


def download(slurm: Cluster, folder: Path, array: str, **env: str) -> Job:
    """coyo_download.sbatch of the rows in a folder, at 16 pixels, with patience."""
    options = ["--resolution=16", "--samples-per-shard=4", "--allow-private", "--deadline=3600"]
    env |= {"ROWS": str(folder / "rows"), "SHARDS": str(folder / "shards"), "PASSES": "1"}
    script = ["slurm/coyo_download.sbatch", *options]
    return Job(slurm, folder / "x", *TASK, f"--array={array}", *script, **env)


def test_parts_of_the_rows_by_an_array(slurm: Cluster, tmp_path: Path, server) -> None:
    urls = [f"{server.url}/{'flaky' if n % 5 == 4 else 'jpg'}/{n}" for n in range(20)]
    rows_file(tmp_path / "rows/00000.parquet", urls)
    job = download(slurm, tmp_path, "0-2")
    parts = [tmp_path / f"shards/part-{k:05d}-of-00003" for k in range(3)]
    until(lambda: all((p / "manifest.json").exists() for p in parts), "three parts", job.told)
    job.wait("COMPLETED 0:0")
    assert merge(tmp_path / "shards").samples == 20
    assert verify(tmp_path / "shards").samples == 20


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What the server waits for before it answers: /gate0/N, /gate1/N."""
    made = [Event(), Event()]

    def held(gate: Event) -> Any:
        def answer(to: Any, number: int) -> None:
            gate.wait()
            to.send(200, photo(number))

        return answer

    for number, gate in enumerate(made):
        monkeypatch.setitem(picture_server.KINDS, f"gate{number}", held(gate))
    return made


def test_a_part_that_runs_out_of_time_goes_on(
    slurm: Cluster, tmp_path: Path, server, gates: list[Event]
) -> None:
    """As Slurm signals the shell before the limit; so often, and no more."""
    kinds = ["jpg"] * 8 + ["gate0"] * 8 + ["gate1"] * 4
    urls = [f"{server.url}/{kind}/{number}" for number, kind in enumerate(kinds)]
    rows_file(tmp_path / "rows/00000.parquet", urls)
    job = download(slurm, tmp_path, "0-0", MAX_STOPS="1")
    part = tmp_path / "shards/part-00000-of-00001"
    job.until(lambda _: (part / "000001.tar").exists(), "two shards")
    before = (part / "000001.tar").stat().st_mtime_ns
    job.signal("USR1", "--batch")
    job.back(1)
    gates[0].set()
    job.start()
    job.until(lambda _: (part / "000003.tar").exists(), "four shards")
    job.signal("USR1", "--batch")
    job.until(lambda _: "(MAX_STOPS); submit it again" in job.told(), "a refusal")
    gates[1].set()
    job.wait("COMPLETED 0:0")
    assert job.restarts == 1
    assert "has begun anew 1 times (MAX_STOPS); submit it again" in job.told()
    assert verify(part).samples == 20
    assert (part / "000001.tar").stat().st_mtime_ns == before
