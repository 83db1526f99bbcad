"""stack job: a job goes back into the queue for good reasons, but not in circles."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stack.cli import main
from stack.report.journal import CANCELLED, read_rows
from stack.report.status import status
from stack.verbs.job import ENDING, OVER
from tests.report.journals import save
from tests.verbs.slurm_job import Job, job

__all__ = ["job"]

LOST = (75, "RUNNING", 0)
"""What ends a start: status (None: nobody told), state of the job, iterations it saved."""
CRASH, KILL, STOP, GONE = (1, "RUNNING", 0), (137, "RUNNING", 0), (85, "RUNNING", 0), None


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
    (85, "TIMEOUT"): (True, "stopped by a signal"),
    (143, "LATE"): (True, "out of time before its ranks had ended"),
    (75, "LATE"): (True, "status 75: a rank was gone, silent or stuck"),
    (85, "COMPLETING"): (False, ENDING),
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
    assert job.end(code, state) == (0 if again else OVER)
    told = "" if reason == ENDING else "; back into the queue" if again else "; not started again"
    assert capsys.readouterr().out == f"{job.run}: {reason}{told}\n"


@pytest.mark.parametrize("code", [1, 75, 85, 137, 143])
def test_a_start_that_slurm_ends_has_not_failed(code: int, job: Job) -> None:
    """However its ranks take the signal, and also if it was lost or preempted and begins again."""
    for _ in range(4):
        assert job.begin() == 0
        assert job.end(code, "COMPLETING") == OVER
        found = status(job.run)
        assert (found["state"], found["reason"]) == ("stopped", ENDING)


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
        over = OVER if number == most else 0
        assert job.end(85, "RUNNING", "--max-stops", str(most)) == over
    assert job.last()["reason"] == f"stopped by a signal {most} times without progress (MAX_STOPS)"
    assert status(job.run)["state"] == "stopped"


def test_a_job_in_circles_is_told_so_and_the_next_one_is_not_held_to_it(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job.save(10)
    for requeued in (0, 0, OVER):
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


def test_a_job_that_slurm_does_not_take_back(job: Job) -> None:
    job.begin()
    assert job.end(85) == 0
    assert job.end(85, "REFUSED") == OVER
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
    assert job.end(0, "RUNNING", "--ranks", str(tmp_path)) == OVER
    assert job.last()["reason"] == "finished"
