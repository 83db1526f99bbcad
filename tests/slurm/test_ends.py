"""How a job of slurm/env.sh ends on a real Slurm, with stand-ins for its ranks."""

from __future__ import annotations

import ast
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

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
    slurm: Cluster,
    world: World,
    folder: Path,
    rank: str,
    *arguments: str,
    script: str = "coyo_js",
    noting: str = "",
    fields: Sequence[str] = (),
    env: Mapping[str, str] = {},
) -> Job:
    """A script with ranks that do this instead, of which ``rank`` is the source; they know their
    ``number`` and the job's ``restart``. What notes the job does ``noting`` before; it knows the
    ``restart``, a ``folder``, and whether it is of the "begin" or the "end", its ``part``."""
    source = "import os, sys, time\n"
    source += "restart = int(os.environ.get('SLURM_RESTART_COUNT', '0'))\n"
    source += "if 'RANK' in os.environ:\n    number = int(os.environ['RANK'])\n"
    source += "".join(f"    {line}\n" for line in rank.splitlines())
    source += "elif sys.orig_argv[2:4] == ['stack', 'job']:\n"
    source += f"    part, folder = sys.orig_argv[4], {str(folder)!r}\n"
    source += "".join(f"    {line}\n" for line in noting.splitlines())
    (folder / "rank").mkdir(exist_ok=True)
    (folder / "rank" / "sitecustomize.py").write_text(source)
    settings = {"PYTHONPATH": str(folder / "rank"), "REQUEUE_PAUSE": "1", **env}
    run = folder / "run"
    return Job(slurm, world, run, *arguments, f"slurm/{script}.sbatch", *fields, **settings)


def like_pyxis(slurm: Cluster, folder: Path) -> dict[str, str]:
    """Settings with which commands are steps of Slurm's, as in a container of pyxis', whose
    options an srun of ours takes away: Slurm has no such plugin here."""
    (folder / "bin").mkdir()
    srun = folder / "bin" / "srun"
    real = shutil.which("srun", path=slurm.env["PATH"])
    srun.write_text(
        "#!/bin/bash\noptions=()\n"
        'for option; do [[ $option == --container-* ]] || options+=("$option"); done\n'
        f'exec {real} "${{options[@]}}"\n'
    )
    srun.chmod(0o755)
    path = f"{folder}/bin:{sys.prefix}/bin:{slurm.env['PATH']}"
    return {"CONTAINER": "an/image", "PATH": path, "LOCAL_SCRATCH": str(folder / "scratch" / "x")}


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


STUCK = """\
import signal
if restart:
    os._exit(0)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
print('here', flush=True)
time.sleep(300)
"""


def test_ranks_that_do_not_end_in_time(slurm: Cluster, world: World, tmp_path: Path) -> None:
    """Whatever they do, the job goes back into the queue before its limit."""
    job = submit(slurm, world, tmp_path, STUCK, "-N1", "--time=2", "--signal=USR1@100")
    job.again(1)
    job.wait("COMPLETED")
    assert job.restarts == 1
    first, second = job.notes("end")
    assert (first["status"], first["requeue"]) == (143, True), job.told()
    assert first["reason"] == "out of time before its ranks had ended"
    assert second["reason"] == "finished"
    assert "the time is nearly over, and ranks have not ended" in job.told()


def test_a_run_belongs_to_the_job_that_lives(slurm: Cluster, world: World, tmp_path: Path) -> None:
    """Though no rank of it has given a sign of life; and not to one that was killed."""
    job = submit(slurm, world, tmp_path, STUCK, "-N1")
    under_way(job, 2)
    second = submit(slurm, world, tmp_path, STUCK, "-N1")
    second.wait("FAILED")
    assert slurm.job(second.number)["ExitCode"] == "2:0"
    assert f"error: {job.run}: job {job.number} has it, at work or about to" in second.told()
    assert job.state == "RUNNING"
    slurm.run("scancel", "--full", "--signal=KILL", job.number)
    until(lambda: job.state not in ("RUNNING", "COMPLETING"), f"an end: {job.told()}")
    third = submit(slurm, world, tmp_path, "os._exit(0)", "-N1")
    third.wait("COMPLETED")
    assert [row["job"] for row in job.notes("begin")] == [job.number, third.number]


SLOW = """\
if part == at and not restart:
    open(f'{folder}/noting', 'w').close()
    time.sleep(8)
"""
HEEDING = """\
import signal
if restart:
    os._exit(0)
for name in ('SIGUSR1', 'SIGTERM'):
    signal.signal(getattr(signal, name), lambda *_: os._exit(85))
print('here', flush=True)
time.sleep(300)
"""


def test_preempted_while_its_begin_is_noted(slurm: Cluster, world: World, tmp_path: Path) -> None:
    """By a step of Slurm's, which then has the signal too."""
    noting = f"at = 'begin'\n{SLOW}"
    settings = like_pyxis(slurm, tmp_path)
    job = submit(slurm, world, tmp_path, HEEDING, "-N2", noting=noting, env=settings)
    until((tmp_path / "noting").exists, f"begin: {job.told()}", PATIENCE)
    urgent = ["--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null"]
    slurm.run("sbatch", *urgent, "--wrap=sleep 2")
    job.again(1)
    job.wait("COMPLETED")
    assert job.restarts == 1
    assert [row["event"] for row in job.notes("begin", "end")][-2:] == ["begin", "end"]
    assert (tmp_path / "scratch" / "x").is_dir()


def test_signals_while_its_end_is_noted(slurm: Cluster, world: World, tmp_path: Path) -> None:
    noting = f"at = 'end'\n{SLOW}"
    settings = like_pyxis(slurm, tmp_path)
    job = submit(slurm, world, tmp_path, HEEDING, "-N2", noting=noting, env=settings)
    under_way(job, 4)
    slurm.run("scancel", "--signal=USR1", job.number)
    until((tmp_path / "noting").exists, f"end: {job.told()}", PATIENCE)
    for name in ("USR1", "TERM"):
        slurm.run("scancel", f"--signal={name}", job.number)
    job.again(1)
    job.wait("COMPLETED")
    assert [row["status"] for row in job.notes("end")] == [85, 0], job.told()


def test_notes_that_cannot_be_made_for_a_while(
    slurm: Cluster, world: World, tmp_path: Path
) -> None:
    """A begin that fails as often as it is tried, then an end that does so once."""
    noting = """\
if part == 'begin' and not restart:
    os._exit(1)
if part == 'end' and not os.path.exists(f'{folder}/tried'):
    open(f'{folder}/tried', 'w').close()
    os._exit(1)
"""
    job = submit(slurm, world, tmp_path, "os._exit(0)", "-N1", noting=noting)

    def done() -> bool:
        slurm.run("scontrol", "update", f"jobid={job.number}", "StartTime=now", check=False)
        return job.state == "COMPLETED"

    until(done, f"an end: {job.told()}", PATIENCE)
    assert job.restarts == 1
    assert [row["event"] for row in job.notes("begin", "end")] == ["begin", "end"]


def test_what_cannot_be_noted_is_put_back_so_often(
    slurm: Cluster, world: World, tmp_path: Path
) -> None:
    job = submit(slurm, world, tmp_path, "", "-N1", noting="os._exit(1)", env={"MAX_STOPS": "0"})
    job.wait("FAILED")
    assert job.restarts == 0
    told = f"error: job {job.number}: has begun anew 0 times (MAX_STOPS); submit it again"
    assert told in job.told()


def test_an_option_that_would_be_repeated(slurm: Cluster, world: World, tmp_path: Path) -> None:
    job = submit(slurm, world, tmp_path, "", "-N1", fields=("seed=1", "--step", "4"))
    job.wait("FAILED")
    assert slurm.job(job.number)["ExitCode"] == "2:0"
    assert "error: --step: not field=value, and every start would do it again" in job.told()
    assert not job.notes("begin")


@pytest.mark.parametrize("data", ["/data/{a,b}/*", "/it's, or: [not] #1"])
def test_data_as_it_is_given(slurm: Cluster, world: World, tmp_path: Path, data: str) -> None:
    rank = "print(sys.orig_argv, flush=True)\nos._exit(0)"
    job = submit(slurm, world, tmp_path, rank, "-N1", env={"DATA": data})
    job.wait("COMPLETED")
    [log] = job.run.glob("logs/*/rank-0.log")
    [field] = [word for word in ast.literal_eval(log.read_text()) if word.startswith("data.")]
    assert yaml.safe_load(field.removeprefix("data.folders=")) == [data]
