"""The scripts of slurm/ on a real Slurm: a job that is preempted, signalled, loses ranks and runs
out of time, and ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from stack.cli import main
from tests import forked
from tests.slurm.cluster import PATIENCE, Cluster
from tests.slurm.job import TOY, Job
from tests.slurm.test_ends import preempt

pytestmark = pytest.mark.slow

RANKS, ITERATIONS = 4, 30
FIELDS = [
    f"iterations={ITERATIONS}",
    "device=cpu",
    "global_batch=8",
    "log.every=1",
    "log.sample_every=0",
    "checkpoint.every=4",
]


def recipe(file: Path, watchdog: int) -> Path:
    """The example in two dimensions: all that a training has but data from a disk, in seconds."""
    parallel = f"parallel: {{backend: ddp, watchdog: {watchdog}}}\n"
    file.write_text((forked.ROOT / TOY).read_text() + parallel)
    return file


def usr1(job: Job) -> None:
    job.signal("USR1")


def kill_a_rank(job: Job) -> None:
    job.rank(2).send_signal(signal.SIGKILL)
    job.open_gate()


def stop_a_rank(job: Job) -> None:
    job.rank(1).send_signal(signal.SIGSTOP)
    job.open_gate()


def run_out_of_time(job: Job) -> None:
    """The limit is now in 14 to 15 minutes. The signal is to come 15 minutes before, and does so
    within half a minute: so often Slurm looks."""
    job.limit(15)


DISTURBANCES = {
    # before which iteration: what, statuses of the start's end, its reason (none: nobody is there
    # to tell), and how long ranks may take for an iteration in it (0: for ever)
    5: (preempt, [85], "SIGTERM", 0),
    10: (usr1, [85], "SIGUSR1", 0),
    15: (kill_a_rank, [75, 137], None, 0),  # The others', or where they are slow to end, its own.
    20: (stop_a_rank, [75], None, 20),
    25: (run_out_of_time, [85], "SIGUSR1", 0),
}


def test_a_run_that_is_disturbed_in_every_way_ends_as_one_that_is_not(
    slurm: Cluster, forks: Path, tmp_path: Path
) -> None:
    run, expected, file = tmp_path / "run", tmp_path / "expected", tmp_path / "recipe.yaml"
    alone = ("stack", "distill", recipe(file, 0), *FIELDS, f"out={expected}")
    undisturbed = forked.start_ranks(*alone, ranks=RANKS)
    arguments = ["--nodes=2", "--signal=USR1@900", "slurm/coyo_js.sbatch", *FIELDS]
    settings = {"RECIPE": str(file), "VENV": str(forks), "GRACE": "15"}
    job = Job(slurm, run, *arguments, gates=DISTURBANCES, **settings)
    watchdogs = [watchdog for *_, watchdog in DISTURBANCES.values()]
    for number, (iteration, what) in enumerate(DISTURBANCES.items(), 1):
        disturb, statuses, reason, _ = what
        job.at_gate(iteration, RANKS)
        recipe(file, [*watchdogs, 0][number])  # Of the next start.
        disturb(job)
        job.again(number)
        end = job.notes("end")[-1]
        assert end["requeue"], job.told()
        assert end["status"] in statuses, (disturb.__name__, job.told())
        if reason:
            assert job.events("stopped")[-1]["reason"] == reason
    logs = [log.read_text() for log in run.glob(f"logs/{job.number}-3/rank-*.log")]
    told = ("no progress for 20 s (parallel.watchdog)", "a rank is gone or silent")
    assert any(text in log for text in told for log in logs), "of the rank that was stopped"
    job.wait("COMPLETED 0:0")

    for rank in undisturbed:
        assert rank.wait(PATIENCE) == 0, rank.communicate()
    done = forked.run("tests.slurm.states", "same", run, expected)
    assert done.returncode == 0, done.stderr
    facts = tmp_path / "status.json"
    assert main(["status", str(run), "--json", str(facts)]) == 0
    found = json.loads(facts.read_text())
    assert found["state"] == "finished"
    assert found["step"] == found["total_steps"] == ITERATIONS
    reasons = [restart["reason"] for restart in found["restarts"]]
    assert len(reasons) == len(DISTURBANCES), reasons
    assert reasons[0] == "SIGTERM"
