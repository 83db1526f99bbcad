"""A run's starts and ends, put together from what its folder holds.

    metrics.jsonl   events of the training: start, resume, stopped, failed, finished
    heartbeat.json  its last sign of life
    jobs.jsonl      what slurm/env.sh notes around it: a job's begin and end, with its status

All times are Unix times in seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from stack.util.files import fsync

JOBS = "jobs.jsonl"
KILLED = "ended without a word: killed, or its node failed"


@dataclass
class Attempt:
    """One start of a run.

    Args:
        began: when its process did, or its job. step: iterations done then, None if it ended
            before training began. reached: iterations it is known to have done.
        seconds: training time over all starts, at ``step`` and at ``reached``.
        last: its last sign of life. ended: why it ended, None while nobody has said.
        failed: whether that is an error.
        queued: whether its job has been put back into the queue.
    """

    began: float
    last: float
    step: int | None = None
    reached: int = 0
    seconds: tuple[float, float] = (0.0, 0.0)
    ended: str | None = None
    finished: bool = False
    failed: bool = False
    queued: bool = False


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSON-lines file that can be read; none where there is no file. A machine
    that went down may have left one cut short."""
    lines = file.read_text().splitlines() if file.is_file() else []
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def note_job(run: Path, event: str, **details: Any) -> None:
    """Add a line to jobs.jsonl; it is on the disk when this returns."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / JOBS).open("a") as file:
        file.write(json.dumps({"event": event, "wall": time.time(), **details}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fsync(run)


def trainings(run: Path) -> list[Path]:
    """The folders with a log in a run's folder: itself, or one of each of its trainings."""
    logs = [run / "metrics.jsonl", *run.glob("*/metrics.jsonl")]
    found = [(log.stat().st_mtime, log.parent) for log in logs if log.is_file()]
    return [folder for _, folder in sorted(found)]


def attempts(run: Path) -> list[Attempt]:
    """Every start of a run, in order."""
    found = [attempt for folder in trainings(run) for attempt in _of_log(folder)]
    return _with_jobs(sorted(found, key=lambda attempt: attempt.began), run / JOBS)


def _of_log(folder: Path) -> list[Attempt]:
    found: list[Attempt] = []
    for row in read_rows(folder / "metrics.jsonl"):
        event = row.get("event")
        if event in ("start", "resume"):
            clock = (row["time"], row["time"])
            began = row.get("began", row.get("wall", 0.0))
            wall = row.get("wall", began)
            found.append(Attempt(began, wall, row["step"], row["step"], clock))
        elif found:
            _follow(found[-1], row)
    beat = heartbeat(folder)
    if found and beat and beat["wall"] > found[-1].last:
        found[-1].last, found[-1].reached = beat["wall"], beat["step"]
    return found


def heartbeat(folder: Path) -> dict[str, Any] | None:
    """The last sign of life of the training in a folder."""
    file = folder / "heartbeat.json"
    return json.loads(file.read_text()) if file.is_file() else None


def _follow(attempt: Attempt, row: dict[str, Any]) -> None:
    """What a later line of the log says of the attempt it is of."""
    began, now = attempt.seconds
    attempt.last += max(0.0, row["time"] - now)
    attempt.seconds, attempt.reached = (began, row["time"]), row["step"]
    match row.get("event"):
        case "finished":
            attempt.ended, attempt.finished = "finished", True
        case "stopped":
            attempt.ended = row["reason"]
        case "failed":
            attempt.ended, attempt.failed = row["reason"], True


def _with_jobs(found: list[Attempt], file: Path) -> list[Attempt]:
    """The same with what jobs.jsonl knows, and with the jobs that ended before any training."""
    jobs = [row for row in read_rows(file) if row["event"] == "begin"]
    ends = [row for row in read_rows(file) if row["event"] == "end"]
    for job, after in zip_longest(jobs, jobs[1:]):
        until = after["wall"] if after else float("inf")
        end = next((row for row in ends if job["wall"] <= row["wall"] < until), None)
        own = [attempt for attempt in found if job["wall"] <= attempt.began < until]
        if not own and (end or after):
            own = [Attempt(job["wall"], job["wall"])]
            found.append(own[0])
        if own:
            own[0].began = job["wall"]
        if own and end:
            _close(own[-1], end)
    found.sort(key=lambda attempt: attempt.began)
    for attempt in found[:-1]:
        attempt.ended = attempt.ended or KILLED
    return found


def _close(attempt: Attempt, end: dict[str, Any]) -> None:
    attempt.last = max(attempt.last, end["wall"])
    attempt.queued = end["requeue"]
    if attempt.ended is None:
        attempt.ended, attempt.failed = end["reason"], not end["requeue"]
