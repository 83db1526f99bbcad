"""stack job begin: a run belongs to one job at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from stack.report.journal import read_rows
from tests.verbs.slurm_job import Job, job

__all__ = ["job"]

OTHERS: dict[str, tuple[int, int | None, str | None, bool]] = {
    # seconds since job 7 began, and since its heartbeat; jobs that Slurm has no more, if it was
    # asked; whether job 8 is refused
    "loading": (5, None, None, True),
    "silent for long": (700, None, None, False),
    "training": (9000, 5, None, True),
    "saving or evaluating": (9000, 90, None, True),
    "training once": (9000, 700, None, False),
    "alive, without a heartbeat": (9000, None, "", True),
    "alive, with an old one": (9000, 90, "5 6", True),
    "alive, long silent": (9000, 8000, "", True),
    "dead, just begun": (5, None, "7", False),
    "dead, just seen": (9000, 5, "6 7", False),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_that_another_job_has(
    name: str, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slurm knows best whether that job lives; without its word, signs of life tell."""
    begun, beat, gone, refused = OTHERS[name]
    journal = job.run / "jobs.jsonl"
    job.begin()
    [row] = read_rows(journal)
    journal.write_text(json.dumps(row | {"wall": time.time() - begun}) + "\n")
    if beat is not None:
        (job.run / "metrics.jsonl").write_text("")
        sign = {"wall": time.time() - beat, "job": "7", "step": 3}
        (job.run / "heartbeat.json").write_text(json.dumps(sign))
    if gone is not None:
        monkeypatch.setenv("JOBS_GONE", gone)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert job.begin() == (2 if refused else 0)
    words = f"error: {job.run}: job 7 has it, at work or about to go on; scancel it first, or "
    assert (words in capsys.readouterr().err) == refused
    assert len(list(read_rows(journal))) == (1 if refused else 2)


def test_a_job_has_a_run_until_its_end(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends after it: another one, which began while it was thought dead."""
    job.begin()
    assert job.begin() == 0  # Itself once more, as after a lost node.
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("JOBS_GONE", "7")
    assert job.begin() == 0
    job.end(85)
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("JOBS_GONE", "")
    assert job.begin() == 2
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    job.end(85)
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert job.begin() == 0


def test_of_jobs_that_begin_at_once_one_has_the_run(job: Job) -> None:
    """Slurm was asked by all before any of them had noted its begin, which takes time."""
    script = "import sys, time; from stack.cli import main; from stack.verbs import job; "
    script += "idle = job.idle; job.idle = lambda *past: (time.sleep(1), idle(*past))[1]; "
    script += "time.sleep(max(0, float(sys.argv[1]) - time.time())); "
    script += "sys.exit(main(['job', 'begin', sys.argv[2]]))"
    start = str(time.time() + 15)
    begins = [
        subprocess.Popen(
            [sys.executable, "-c", script, start, str(job.run)],
            env=os.environ | {"SLURM_JOB_ID": str(number), "JOBS_GONE": ""},
            stderr=subprocess.DEVNULL,
        )
        for number in range(5)
    ]
    assert sorted(begin.wait() for begin in begins) == [0, 2, 2, 2, 2]
    [row] = read_rows(job.run / "jobs.jsonl")
    assert row["event"] == "begin"


def test_a_lock_that_a_dead_job_has_left(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.run.mkdir(parents=True)
    (job.run / ".jobs.lock").touch()
    monkeypatch.setattr("stack.verbs.job._LEFT", 0.3)
    began = time.monotonic()
    assert job.begin() == 0
    assert time.monotonic() - began > 0.3
    assert [path.name for path in job.run.iterdir()] == ["jobs.jsonl"]


def test_a_lock_that_another_job_has_made_meanwhile_is_left(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long this one has waited: a lock's own age counts."""
    job.run.mkdir(parents=True)
    lock = job.run / ".jobs.lock"
    lock.touch()
    waits = []

    def another_has_its_turn(seconds: float) -> None:
        assert lock.exists(), "removed though it is new"
        waits.append(seconds)
        lock.unlink()
        if len(waits) < 30:
            lock.touch()

    monkeypatch.setattr("stack.verbs.job._LEFT", 0.5)
    monkeypatch.setattr(
        "stack.verbs.job.time", SimpleNamespace(time=time.time, sleep=another_has_its_turn)
    )
    assert job.begin() == 0
    assert len(waits) == 30
