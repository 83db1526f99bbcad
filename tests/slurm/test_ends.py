"""How a job of slurm/env.sh ends on a real Slurm, with stand-ins for its ranks."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline import World
from tests.slurm.cluster import Cluster, cluster, missing, until
from tests.slurm.job import PATIENCE, Job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=f"no Slurm: {missing()}"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm") / "root", nodes=3) as made:
        yield made


def submit(
    slurm: Cluster, world: World, folder: Path, rank: str, *arguments: str, script: str = "coyo_js"
) -> Job:
    """A script with ranks that do this instead, of which ``rank`` is the source; they know their
    ``number`` and the job's ``restart``."""
    source = "import os, sys, time\nif 'RANK' in os.environ:\n"
    source += "    number = int(os.environ['RANK'])\n"
    source += "    restart = int(os.environ.get('SLURM_RESTART_COUNT', '0'))\n"
    source += "".join(f"    {line}\n" for line in rank.splitlines())
    (folder / "rank").mkdir()
    (folder / "rank" / "sitecustomize.py").write_text(source)
    env = {"PYTHONPATH": str(folder / "rank"), "REQUEUE_PAUSE": "1"}
    return Job(slurm, world, folder / "run", *arguments, f"slurm/{script}.sbatch", **env)


def under_way(job: Job, ranks: int) -> None:
    """Wait until all have said so."""

    def here() -> bool:
        return sum("here" in log.read_text() for log in job.run.glob("logs/*/*.log")) == ranks

    until(here, f"ranks: {job.told()}", PATIENCE)


LOST = """\
print('here', flush=True)
time.sleep(20 if restart else 120)
os._exit(0)
"""


def test_a_first_node_that_only_seems_lost(slurm: Cluster, world: World, tmp_path: Path) -> None:
    """Slurm begins the job anew; the shell that lives on there must not put that back again."""
    job = submit(slurm, world, tmp_path, LOST, "-N2")
    under_way(job, 4)
    host = slurm.job(job.number)["BatchHost"]
    slurm.daemons[f"slurmd-{host}"].kill()
    try:
        job.again(1)
        assert slurm.job(job.number)["BatchHost"] != host
        job.wait("COMPLETED")
    finally:
        slurm.revive_node(host)
    assert job.restarts == 1, job.told()
    assert [row["event"] for row in job.notes("begin", "end")] == ["begin", "begin", "end"]
    assert job.notes("end")[-1]["reason"] == "finished"
    assert "has begun anew without this node" in job.told()


MEND = """\
if number == 0:
    print('error: x: mend me', file=sys.stderr)
    sys.stderr.flush()
    os._exit(2)
time.sleep(1)
os._exit(75)
"""


def test_an_error_to_mend_on_one_rank(slurm: Cluster, world: World, tmp_path: Path) -> None:
    """The others lose it, and end with a higher status, which srun returns."""
    job = submit(slurm, world, tmp_path, MEND, "-N2")
    job.wait("FAILED")
    [end] = job.notes("end")
    assert (end["status"], end["requeue"]) == (2, False)
    assert "error: x: mend me" in (tmp_path / "run.out").read_text()


SIGNALLED = """\
import signal
if restart:
    os._exit(0)
for name in ('SIGUSR1', 'SIGTERM'):
    signal.signal(getattr(signal, name), lambda *_: os._exit(85))
print('here', flush=True)
time.sleep(120)
"""


@pytest.mark.parametrize(("name", "alone"), [("USR1", False), ("TERM", False), ("USR1", True)])
def test_a_signal_reaches_the_command(
    slurm: Cluster, world: World, tmp_path: Path, name: str, alone: bool
) -> None:
    """Also where Slurm signals a task's first process alone, as proctrack/cgroup does."""
    job = submit(slurm, world, tmp_path, SIGNALLED, "-N1")
    under_way(job, 2)
    if alone:
        for number in (0, 1):
            job.rank_script(number).send_signal(signal.Signals[f"SIG{name}"])
    else:
        slurm.run("scancel", f"--signal={name}", job.number)
    job.again(1)
    job.wait("COMPLETED")
    assert [row["status"] for row in job.notes("end")] == [85, 0], job.told()


EVALUATION = """\
if restart:
    os._exit(0)
print('here', flush=True)
time.sleep(120)
"""


def test_an_evaluation_that_is_out_of_time_goes_on(
    slurm: Cluster, world: World, tmp_path: Path
) -> None:
    """The signal ends its ranks."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    job = submit(slurm, world, tmp_path, EVALUATION, "-N1", script="coyo_evaluate")
    job.noted = job.run / "evaluations"
    under_way(job, 2)
    slurm.run("scancel", "--signal=USR1", job.number)
    job.again(1)
    job.wait("COMPLETED")
    assert [row["status"] for row in job.notes("end")] == [138, 0]
    assert not (job.run / "jobs.jsonl").exists()
