"""Trainings on a real Slurm whose nodes are lost, or become fewer; a job that is cancelled; and the
doctor on all nodes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests import forked
from tests.forked import Fork
from tests.slurm.cluster import PATIENCE, Cluster, until
from tests.slurm.job import Job

pytestmark = pytest.mark.slow

ONE = "--ntasks-per-node=1"


def train(recipe: Path, run: Path, *fields: str) -> list[Fork]:
    """The same on two ranks of this machine, without Slurm."""
    return forked.start_ranks("stack", "distill", recipe, *fields, f"out={run}", ranks=2)


def finish(ranks: list[Fork]) -> None:
    for rank in ranks:
        assert rank.wait(PATIENCE) == 0, rank.communicate()


def compare(how: str, run: Path, expected: Path) -> None:
    done = forked.run("tests.slurm.states", how, run, expected)
    assert done.returncode == 0, done.stderr


def test_a_run_that_loses_a_node_goes_on_without_it_and_then_on_fewer(
    slurm: Cluster, forks: Path, tmp_path: Path
) -> None:
    recipe, run, expected = (tmp_path / name for name in ("recipe.yaml", "run", "expected"))
    made = forked.run("tests.slurm.states", "recipe", tmp_path)
    assert made.returncode == 0, made.stderr
    undisturbed = train(recipe, expected)
    settings = {"RECIPE": str(recipe), "VENV": str(forks)}
    job = Job(slurm, run, "-N2", ONE, "slurm/coyo_js.sbatch", gates=[3], **settings)
    job.at_gate(3, 2)
    slurm.lose("n2")
    job.open_gate()
    job.again(1)
    assert "n2" not in job.slurms["NodeList"]
    job.wait("COMPLETED 0:0")
    finish(undisturbed)
    compare("same", run, expected)

    more = ["iterations=8", "parallel.micro_batch=4"]
    smaller = Job(slurm, run, "-N1", ONE, "slurm/coyo_js.sbatch", *more, **settings)
    smaller.wait("COMPLETED 0:0")
    commit = json.loads((run / "checkpoints" / "step-0000008" / "COMMIT.json").read_text())
    assert commit["world_size"] == 1
    assert [row["step"] for row in smaller.events("resume", "finished")][-2:] == [6, 8]
    finish(train(recipe, expected, *more, "--resume"))
    compare("weights", run, expected)


def test_scancel_saves_and_means_it(slurm: Cluster, tmp_path: Path) -> None:
    """A rank that is no fork, on the node that leaves it the time."""
    where = ["--partition=patient", "-N1", ONE]
    fields = ["device=cpu", "global_batch=8", "log.every=1", "checkpoint.every=1000000"]
    job = Job(slurm, tmp_path / "run", *where, "slurm/coyo_js.sbatch", *fields)
    job.until(lambda _: job.step() > 3, "progress")
    slurm.run("scancel", job.number)
    job.wait("CANCELLED")
    assert [row["requeue"] for row in job.notes("end")] == [False]
    assert job.saved() == job.events("stopped")[-1]["step"]


def test_doctor_on_all_nodes(slurm: Cluster, forks: Path, tmp_path: Path) -> None:
    """But for links that a busy machine makes slower than others."""
    named = "--export=ROOT,RECIPE,OUT,VENV,GRACE,PATH,HOME"  # And no more.
    fields = ["device=cpu", "parallel.backend=ddp", "global_batch=8"]
    arguments = [named, "-N2", "slurm/doctor.sbatch", *fields]
    job = Job(slurm, tmp_path / "run", *arguments, VENV=str(forks))
    until(lambda: job.slurms["JobState"] in ("COMPLETED", "FAILED"), "an end", job.told)
    told = (tmp_path / "run.out").read_text()
    assert re.search(r"collectives +(ok|fail) +all-reduce of .*, each rank sends", told), told
    failed = re.findall(r" fail +(.*)", told)
    assert f"\n{len(failed)} failed, 0 warnings" in told
    assert all(re.match(r"rank \d to rank \d: ", text) for text in failed), told
