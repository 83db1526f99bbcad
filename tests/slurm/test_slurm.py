"""The scripts of slurm/ on a real Slurm: a job that is preempted, signalled, loses ranks and a
node, runs out of time, and ends as if nothing had happened."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline import World, assert_same_state, run_stack, state_of
from tests.slurm.cluster import Cluster, cluster, missing, until
from tests.slurm.job import Job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=f"no Slurm: {missing()}"),
]

FIELDS = [
    "data.global_batch=8",
    "gan.resolutions=[8, 4]",
    "gan.width=8",
    "log.every=1",
    "log.sample_every=0",
    "checkpoint.every=10",
    "parallel.timeout=60",
    "parallel.watchdog=20",
]
"""The digits recipe, on a teacher and pictures that are made in seconds."""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm") / "root", nodes=3) as made:
        yield made


def preempt(job: Job) -> None:
    job.slurm.run(
        "sbatch",
        "--partition=urgent",
        "--nodes=3",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=sleep 2",
    )


def usr1(job: Job) -> None:
    job.slurm.run("scancel", "--signal=USR1", job.number)


def kill_a_rank(job: Job) -> None:
    job.rank(2).send_signal(signal.SIGKILL)


def stop_a_rank(job: Job) -> None:
    job.rank(1).send_signal(signal.SIGSTOP)


def run_out_of_time(job: Job) -> None:
    """The limit is set to the next full minute but three; the signal comes 150 s before, or up to
    half a minute later: so often Slurm looks."""
    hours, minutes, _ = job.slurm.job(job.number)["RunTime"].split(":")
    limit = int(hours) * 60 + int(minutes) + 3
    job.slurm.run("scontrol", "update", f"jobid={job.number}", f"TimeLimit={limit}")


DISTURBANCES = [
    # what, statuses that stack job end may be told (none: nobody is there to tell), its reason
    (preempt, [85], "SIGTERM"),
    (usr1, [85], "SIGUSR1"),
    (kill_a_rank, [75, 137], None),  # The others', or where they are slow to end, its own.
    (stop_a_rank, [], None),
    (run_out_of_time, [85], "SIGUSR1"),
]


def alone(world: World, run: Path, fields: list[str]) -> None:
    """The same run on four ranks of this machine, without Slurm."""
    local = ["parallel.backend=ddp", "parallel.processes=4", f"out={run}"]
    paths = [f"teacher.path={world.teacher}", f"data.folders=[{world.data}]"]
    done = run_stack("distill", "recipes/digits_js.yaml", *fields, *paths, *local)
    assert done.returncode == 0, done.stderr


def assert_close_state(run: Path, expected: Path) -> None:
    """The newest checkpoints are at the same place in the data, and their weights, moments and
    averages agree but for what another order of summation makes of a few iterations. Left out is
    the bias that a head's normalisation takes away again, whose gradient is rounding alone."""
    (tensors, state), (expected_tensors, expected_state) = state_of(run), state_of(expected)
    assert state == expected_state
    floats = {name: t for name, t in expected_tensors.items() if t.is_floating_point()}
    assert floats.keys() <= tensors.keys()
    for name, there in floats.items():
        if not re.search(r"heads\.\d\.3\.bias", name):
            assert (tensors[name] - there).norm() <= 1e-4 * there.norm() + 1e-7, name


def test_a_run_that_is_disturbed_in_every_way_ends_as_one_that_is_not(
    slurm: Cluster, world: World, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fields = [*FIELDS, "iterations=150"]
    arguments = ["--nodes=2", "--signal=USR1@150", "slurm/coyo_js.sbatch", *fields]
    job = Job(slurm, world, run, *arguments)
    for number, (disturb, statuses, reason) in enumerate(DISTURBANCES, 1):
        job.advance()
        disturb(job)
        job.again(number)
        slurm.run("scontrol", "update", f"jobid={job.number}", "TimeLimit=30")
        end = job.notes("end")[-1]
        assert end["requeue"], job.told()
        if statuses:
            assert end["status"] in statuses, (disturb.__name__, job.told())
        if reason:
            assert job.events("stopped")[-1]["reason"] == reason
    logs = [log.read_text() for log in run.glob(f"logs/{job.number}-3/rank-*.log")]
    told = ("no progress for 20 s (parallel.watchdog)", "a rank is gone or silent")
    assert any(text in log for text in told for log in logs), "of the rank that was stopped"
    job.wait("COMPLETED")

    expected = tmp_path / "expected"
    alone(world, expected, fields)
    assert_same_state(run, expected)
    facts = tmp_path / "status.json"
    assert run_stack("status", str(run), "--json", str(facts)).returncode == 0
    found = json.loads(facts.read_text())
    assert found["state"] == "finished"
    assert found["step"] == found["total_steps"] == 150
    reasons = [restart["reason"] for restart in found["restarts"]]
    assert len(reasons) == len(DISTURBANCES), reasons
    assert reasons[0] == "SIGTERM"


def test_a_run_that_loses_a_node_goes_on_without_it_and_then_on_fewer(
    slurm: Cluster, world: World, tmp_path: Path
) -> None:
    run, expected = tmp_path / "run", tmp_path / "expected"
    fields = [*FIELDS, "iterations=250"]
    job = Job(slurm, world, run, "--nodes=2", "slurm/coyo_js.sbatch", *fields)
    job.advance()
    slurm.daemons["slurmd-n2"].kill()
    until(lambda: slurm.nodes_in("down") == ["n2"], "n2 down")
    job.again(1)
    job.wait("COMPLETED")
    alone(world, expected, fields)
    assert_same_state(run, expected)
    slurm.revive_node("n2")

    more = [*FIELDS, "iterations=254", "parallel.micro_batch=2"]
    smaller = Job(slurm, world, run, "--nodes=1", "slurm/coyo_js.sbatch", *more)
    smaller.wait("COMPLETED")
    commit = json.loads((run / "checkpoints" / "step-0000254" / "COMMIT.json").read_text())
    assert commit["world_size"] == 2
    assert [row["step"] for row in smaller.events("resume", "finished")][-2:] == [250, 254]
    alone(world, expected, [*more, "--resume"])
    assert_close_state(run, expected)


def test_a_job_that_goes_in_circles_is_left_alone(
    slurm: Cluster, world: World, tmp_path: Path
) -> None:
    """A rank that dies at every start."""
    (tmp_path / "broken").mkdir()
    script = "import os\nif os.environ.get('RANK') == '1':\n    os._exit(9)\n"
    (tmp_path / "broken" / "sitecustomize.py").write_text(script)
    path = str(tmp_path / "broken")
    job = Job(
        slurm, world, tmp_path / "run", "-N1", "slurm/coyo_js.sbatch", *FIELDS, PYTHONPATH=path
    )
    for restart in (1, 2):
        job.again(restart)
    job.wait("FAILED")
    assert [row["requeue"] for row in job.notes("end")] == [True, True, False]
    assert "3 starts without progress" in job.notes("end")[-1]["reason"]


def test_a_mistake_is_told_once(slurm: Cluster, world: World, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    job = Job(slurm, world, tmp_path / "run", "-N1", "slurm/coyo_js.sbatch", TEACHER=nowhere)
    job.wait("FAILED")
    assert slurm.job(job.number)["ExitCode"] == "2:0"
    assert [row["requeue"] for row in job.notes("end")] == [False]
    assert f"{nowhere}" in (tmp_path / "run.out").read_text()


def test_scancel_saves_and_means_it(slurm: Cluster, world: World, tmp_path: Path) -> None:
    job = Job(slurm, world, tmp_path / "run", "-N1", "slurm/coyo_js.sbatch", *FIELDS)
    job.advance()
    slurm.run("scancel", job.number)
    until(lambda: job.notes("end"), f"an end: {job.told()}")
    job.wait("CANCELLED")
    assert [row["requeue"] for row in job.notes("end")] == [False]
    assert job.saved() == job.events("stopped")[-1]["step"]


def test_doctor_on_all_nodes(slurm: Cluster, world: World, tmp_path: Path) -> None:
    named = "--export=ROOT,RECIPE,TEACHER,DATA,OUT,VENV,GRACE,PATH,HOME"  # And no more.
    job = Job(slurm, world, tmp_path / "run", named, "-N2", "slurm/doctor.sbatch", *FIELDS)
    job.wait("COMPLETED")
    told = (tmp_path / "run.out").read_text()
    assert "collectives" in told
    assert "0 failed" in told


def test_a_rank_that_dies_does_not_take_the_doctor_along(
    slurm: Cluster, world: World, tmp_path: Path
) -> None:
    """The first rank waits for it, longer than the others would be waited for in a training."""
    (tmp_path / "broken").mkdir()
    script = "import os\nif os.environ.get('RANK') == '3':\n    os._exit(9)\n"
    (tmp_path / "broken" / "sitecustomize.py").write_text(script)
    fields = [field for field in FIELDS if "timeout" not in field]
    env = {"GRACE": "", "PYTHONPATH": str(tmp_path / "broken")}
    job = Job(slurm, world, tmp_path / "run", "-N2", "slurm/doctor.sbatch", *fields, **env)
    job.wait("FAILED")
    told = (tmp_path / "run.out").read_text()
    assert "n2: task 3: Exited with exit code 9" in told
    assert "did not come within 75 s" in told
    assert "1 failed" in told
