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


BEGIN = """
import sys, time
from stack.cli import main
from stack.verbs import job
idle = job.idle
job.idle = lambda *past: (time.sleep(1), idle(*past))[1]
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main(["job", "begin", sys.argv[1]]))
"""


def test_of_jobs_that_begin_at_once_one_has_the_run(job: Job) -> None:
    """Slurm was asked by all before any of them had noted its begin, which takes time."""
    begins = [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN, str(job.run)],
            env=os.environ | {"SLURM_JOB_ID": str(number), "JOBS_GONE": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for number in range(5)
    ]
    for begin in begins:
        assert begin.stdout.readline() == "ready\n"  # type: ignore[union-attr]
    for begin in begins:
        begin.stdin.close()  # type: ignore[union-attr]
    assert sorted(begin.wait() for begin in begins) == [0, 2, 2, 2, 2]
    for begin in begins:
        begin.stdout.close()  # type: ignore[union-attr]
    [row] = read_rows(job.run / "jobs.jsonl")
    assert row["event"] == "begin"


class Waiting:
    """The clock of a job that waits for a lock, which was made just before."""

    def __init__(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lock, self.now, self.waits = job.run / ".jobs.lock", 1e9, 0
        job.run.mkdir(parents=True)
        self.make()
        told = SimpleNamespace(time=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr("stack.verbs.job.time", told)

    def make(self) -> None:
        self.lock.touch()
        os.utime(self.lock, (self.now, self.now))

    def sleep(self, seconds: float) -> None:
        self.waits += 1
        self.now += seconds


def test_a_lock_that_a_dead_job_has_left(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as old as a minute when it is taken away."""
    waiting = Waiting(job, monkeypatch)
    assert job.begin() == 0
    assert 60 < waiting.now - 1e9 < 61
    assert [path.name for path in job.run.iterdir()] == ["jobs.jsonl"]


def test_a_lock_that_another_job_has_made_meanwhile_is_left(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long this one has waited: a lock's own age counts."""
    waiting = Waiting(job, monkeypatch)

    def another_has_its_turn(seconds: float) -> None:
        assert waiting.lock.exists(), "removed though it is new"
        waiting.sleep(30)
        waiting.lock.unlink()
        if waiting.waits < 30:
            waiting.make()

    monkeypatch.setattr("stack.verbs.job.time.sleep", another_has_its_turn)
    assert job.begin() == 0
    assert waiting.waits == 30
