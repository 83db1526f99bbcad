"""stack job: a job goes back into the queue for good reasons, but not in circles."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from stack.cli import main
from stack.report.journal import CANCELLED, read_rows
from stack.report.status import status
from tests.report.journals import save

LOST = (75, "RUNNING", 0)
"""What ends a start: status (None: nobody told), state of the job, iterations it saved."""
CRASH, KILL, STOP, GONE = (1, "RUNNING", 0), (137, "RUNNING", 0), (85, "RUNNING", 0), None


class Job:
    """A job in Slurm, as slurm/env.sh treats it."""

    def __init__(self, run: Path) -> None:
        self.run, self.saved = run, 0

    def begin(self, *options: str) -> int:
        return main(["job", "begin", str(self.run), *options])

    def save(self, steps: int) -> None:
        if steps:
            self.saved += steps
            save(self.run, self.saved)

    def end(self, code: int, state: str = "RUNNING", *options: str) -> int:
        told = ["--status", str(code), "--state", state]
        return main(["job", "end", str(self.run), *told, *options])

    def last(self) -> dict[str, object]:
        return list(read_rows(self.run / "jobs.jsonl"))[-1]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    for name, value in {"JOB_ID": "7", "JOB_NODELIST": "n[1-2]", "NTASKS": "16"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    return Job(tmp_path / "runs" / "run")


ENDS = {
    # status, state of the job: whether it goes back into the queue, and why it ended
    (0, "RUNNING"): (False, "finished"),
    (0, "COMPLETING"): (False, "finished"),
    (2, "RUNNING"): (False, "status 2: an error to mend, which the log says"),
    (85, "RUNNING"): (True, "stopped by a signal"),
    (85, "PREEMPTED"): (True, "stopped by a signal"),
    (85, ""): (True, "stopped by a signal"),
    (143, "RUNNING"): (True, "stopped by a signal"),
    (138, "RUNNING"): (True, "stopped by a signal"),
    (85, "COMPLETING"): (False, CANCELLED),
    (137, "CANCELLED"): (False, CANCELLED),
    (75, "RUNNING"): (True, "status 75: a rank was gone, silent or stuck"),
    (1, "RUNNING"): (True, "status 1"),
    (137, "NODE_FAIL"): (True, "status 137"),
}


@pytest.mark.parametrize(("code", "state"), ENDS)
def test_the_end_of_a_first_start(
    code: int, state: str, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    again, reason = ENDS[code, state]
    assert job.begin() == 0
    job.save(10)
    assert job.end(code, state) == (0 if again else 1)
    told = "back into the queue" if again else "not started again"
    assert capsys.readouterr().out == f"{job.run}: {reason}; {told}\n"


def test_what_is_noted(job: Job) -> None:
    job.begin()
    job.save(10)
    job.end(85)
    begin, end = read_rows(job.run / "jobs.jsonl")
    assert begin.pop("wall") <= end.pop("wall")
    place = {"restart": "0", "nodes": "n[1-2]", "tasks": "16"}
    assert begin == {"event": "begin", "job": "7", "step": 0, **place}
    told = {"status": 85, "reason": "stopped by a signal", "requeue": True}
    assert end == {"event": "end", "job": "7", "step": 10, **told}


def starts_of(job: Job, ends: list[tuple[int, str, int] | None]) -> int:
    """How many of these starts a job gets to make."""
    for number, how in enumerate(ends):
        if job.begin():
            return number
        if how is None:
            continue
        code, state, saved = how
        job.save(saved)
        if job.end(code, state):
            return number + 1
    return len(ends)


def moving(end: tuple[int, str, int]) -> tuple[int, str, int]:
    """The same after a save."""
    return (*end[:2], 10)


SEQUENCES = {
    "preempted": ([STOP] * 30, 20),
    "preempted, with progress": ([moving(STOP)] * 30, 30),
    "preempted in all ways": ([(85, "RUNNING", 0), (143, "PREEMPTED", 0), (138, "", 0)] * 10, 20),
    "crashes": ([CRASH] * 9, 3),
    "ranks lost": ([LOST] * 9, 3),
    "killed": ([KILL] * 9, 3),
    "nodes that fail": ([GONE] * 30, 20),
    "of all kinds": ([CRASH, GONE, LOST, KILL, CRASH], 4),
    "ending with a node that fails": ([CRASH, LOST, GONE, KILL, CRASH], 4),
    "with progress": ([moving(CRASH)] * 30, 30),
    "with progress in between": ([CRASH, CRASH, moving(CRASH), CRASH, CRASH, CRASH, CRASH], 6),
    "a preemption is no progress": ([CRASH, CRASH, STOP, CRASH, CRASH], 4),
    "unless it saved": ([CRASH, CRASH, moving(STOP), CRASH, CRASH, CRASH, CRASH], 6),
    "nodes that fail are no crashes": ([GONE, GONE, STOP, CRASH, CRASH, CRASH, CRASH], 6),
    "preemptions are no crashes": ([STOP, STOP, STOP, CRASH, CRASH, CRASH, CRASH], 6),
    "an error to mend": ([moving(CRASH), (2, "RUNNING", 0), CRASH], 2),
    "finished": ([STOP, (0, "RUNNING", 5), CRASH], 2),
    "cancelled": ([STOP, (85, "COMPLETING", 5), CRASH], 2),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_starts_of_a_job(name: str, job: Job) -> None:
    ends, starts = SEQUENCES[name]
    assert starts_of(job, list(ends)) == starts


@pytest.mark.parametrize(("most", "starts"), [(1, 1), (2, 2), (5, 5)])
def test_limits_are_options(most: int, starts: int, job: Job) -> None:
    for number in range(1, starts + 1):
        assert job.begin("--max-crashes", str(most)) == 0
        again = job.end(1, "RUNNING", "--max-crashes", str(most)) == 0
        assert again == (number < most)
    assert job.begin("--max-crashes", str(most)) == 2


@pytest.mark.parametrize("most", [1, 3])
def test_the_limit_of_stops_is_an_option(most: int, job: Job) -> None:
    for number in range(1, most + 1):
        job.begin()
        assert job.end(85, "RUNNING", "--max-stops", str(most)) == (number == most)
    assert job.last()["reason"] == f"stopped by a signal {most} times without progress (MAX_STOPS)"
    assert status(job.run)["state"] == "stopped"


def test_a_job_in_circles_is_told_so_and_the_next_one_is_not_held_to_it(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job.save(10)
    for requeued in (0, 0, 1):
        assert job.begin() == 0
        assert job.end(1) == requeued
    capsys.readouterr()
    assert job.begin() == 2
    reason = "3 starts without progress beyond step 10"
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {job.run}: job 7: {reason}; see stack status and ")
    found = status(job.run)
    assert (found["state"], found["reason"], len(found["restarts"])) == ("failed", reason, 2)
    assert job.begin() == 2  # However often it is asked.
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert job.begin() == 0
    assert job.end(1) == 0
    assert status(job.run)["state"] == "queued"


@pytest.mark.parametrize(("done", "under_way"), [("vae", "unet"), ("unet", "vae")])
def test_progress_is_that_of_all_trainings(done: str, under_way: str, job: Job) -> None:
    save(job.run / done, 100)
    for step in (1, 2, 3, 4):
        assert job.begin() == 0
        save(job.run / under_way, step)
        assert job.end(1) == 0


@pytest.mark.parametrize("options", [["--max-crashes", "0"], ["--max-stops", "x"], []])
def test_bad_options(options: list[str], tmp_path: Path) -> None:
    given = ["--status", "1", *options] if options else []
    with pytest.raises(SystemExit) as ended:
        main(["job", "end", str(tmp_path / "run"), *given])
    assert ended.value.code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("age", "refused"), [(5, True), (200, False)])
def test_a_run_that_another_job_has(
    job: Job, monkeypatch: pytest.MonkeyPatch, age: float, refused: bool
) -> None:
    """Until that job has ended, or has given no sign of life for a minute."""
    job.begin()
    (job.run / "metrics.jsonl").write_text("")
    beat = {"wall": time.time() - age, "job": "7", "step": 3}
    (job.run / "heartbeat.json").write_text(json.dumps(beat))
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert job.begin() == (2 if refused else 0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    job.end(85)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert job.begin() == 0


def test_a_job_that_slurm_does_not_take_back(job: Job) -> None:
    job.begin()
    assert job.end(85) == 0
    assert job.end(85, "REFUSED") == 1
    assert "scontrol requeue failed" in job.last()["reason"]
    assert status(job.run)["state"] == "stopped"


RANKS: dict[str, tuple[list[str], int]] = {
    # statuses in the order in which ranks ended: the one that explains the others'
    "an error to mend, and peers that lost it": (["2", "75", "75"], 2),
    "told of the loss first": (["75", "1"], 1),
    "a rank killed": (["137", "75"], 75),
    "all killed": (["137", "139"], 137),
    "stopped, one before it could heed it": (["143", "85", "75"], 143),
    "stopped, and one killed while saving": (["85", "137"], 85),
    "some had finished": (["0", "75"], 75),
    "cut short": (["", "75"], 75),
    "nobody told": ([], 143),
    "srun's own failure": (["0", "0"], 143),
}


@pytest.mark.parametrize("name", RANKS)
def test_the_rank_that_explains_the_others(name: str, job: Job, tmp_path: Path) -> None:
    ended, explains = RANKS[name]
    for number, code in enumerate(ended):
        file = tmp_path / f"rank-{len(ended) - number}.status"
        file.write_text(f"{code}\n")
        os.utime(file, (number, number))
    job.begin()
    job.end(143, "RUNNING", "--ranks", str(tmp_path))
    assert job.last()["status"] == explains


def test_ranks_are_not_asked_after_a_success(job: Job, tmp_path: Path) -> None:
    (tmp_path / "rank-0.status").write_text("75")
    job.begin()
    assert job.end(0, "RUNNING", "--ranks", str(tmp_path)) == 1
    assert job.last()["reason"] == "finished"
