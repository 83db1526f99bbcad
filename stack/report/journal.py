"""A run's starts and ends, put together from what its folder holds.

    metrics.jsonl     events of the training: start, resume, stopped, failed, finished
    heartbeat.json    its last sign of life
    heartbeats.jsonl  that of each earlier start
    jobs.jsonl        what slurm/env.sh notes around it: a job's begin and end, with its status

All times are Unix times in seconds.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile, zip_longest
from math import inf
from pathlib import Path
from typing import Any

from stack.util import exits
from stack.util.files import fsync, read_json

JOBS = "jobs.jsonl"
HEARTBEAT, EARLIER_BEATS = "heartbeat.json", "heartbeats.jsonl"
KILLED = "ended without a word: killed, or its node failed"
CANCELLED = "cancelled"
STOPPED = (exits.STOPPED, 128 + signal.SIGTERM, 128 + signal.SIGUSR1)
"""Statuses after a signal to stop, heeded or come before it could be."""
_TABLE = re.compile(r', "levels/\w+": \[[^"]*\]')


@dataclass
class Attempt:
    """One start of a run, or of one of its trainings.

    Args:
        began: when its process did, or its job. step: iterations done then, None if it ended
            before training began. reached: iterations it is known to have done.
        seconds: training time over all starts, at ``step`` and at ``reached``.
        last: its last sign of life. ended: why it ended, None while nobody has said.
        failed: whether that is an error.
        queued: whether its job has been put back into the queue.
        training: its folder in the run's folder, where the run is of several.
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
    training: str = ""


def read_rows(file: Path, *, tables: bool = True) -> Iterator[dict[str, Any]]:
    """The lines of a JSON-lines file that can be read, one at a time; none where there is no file.
    A machine that went down may have left one cut short, with the next start's first row behind it.

    Args: tables: with those per noise level, which are three quarters of a training's log.
    """
    if not file.is_file():
        return
    with file.open(errors="replace") as lines:
        for line in lines:
            text = line if tables else _TABLE.sub("", line)
            readings = map(_row, (text, text[max(0, text.rfind('{"')) :]))
            yield from islice(filter(None, readings), 1)


def _row(text: str) -> dict[str, Any] | None:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


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
    logs = (run / "metrics.jsonl", *sorted(run.glob("*/metrics.jsonl")))
    return [log.parent for log in logs if log.is_file()]


def attempts(run: Path) -> list[Attempt]:
    """Every start of a run, in order. Two trainings of one process are two starts that began at
    the same time."""
    found: list[Attempt] = []
    for folder in trainings(run):
        own = _of_log(folder)
        for attempt in own:
            attempt.training = "" if folder == run else folder.name
        found += own
    found.sort(key=lambda attempt: (attempt.began, attempt.last))
    return _with_jobs(found, run / JOBS)


def heartbeat(folder: Path) -> dict[str, Any] | None:
    """The last sign of life of the training in a folder."""
    file = folder / HEARTBEAT
    return read_json(file) if file.is_file() else None


def _of_log(folder: Path) -> list[Attempt]:
    log = folder / "metrics.jsonl"
    rows = list(read_rows(log))
    # When training time was 0, for rows that do not say when they are of.
    zero = log.stat().st_mtime - max((row["time"] for row in rows), default=0.0)
    found: list[Attempt] = []
    for row in rows:
        wall = row.get("wall", zero + row["time"])
        if row.get("event") in ("start", "resume"):
            clock = (row["time"], row["time"])
            found.append(Attempt(row.get("began", wall), wall, row["step"], row["step"], clock))
            continue
        if not found:  # Early runs do not log their start.
            found.append(Attempt(zero, zero, 0))
        _follow(found[-1], row)
    beat = heartbeat(folder)
    for row in (*read_rows(folder / EARLIER_BEATS), *([beat] if beat else [])):
        own = [attempt for attempt in found if attempt.began <= row["wall"]]
        if own:
            _move(own[-1], row["wall"] - own[-1].last, row["step"])
    return found


def _follow(attempt: Attempt, row: dict[str, Any]) -> None:
    """What a later line of the log says of the attempt it is of."""
    _move(attempt, row["time"] - attempt.seconds[1], row["step"])
    match row.get("event"):
        case "finished":
            attempt.ended, attempt.finished = "finished", True
        case "stopped":
            attempt.ended = row["reason"]
        case "failed":
            attempt.ended, attempt.failed = row["reason"], True


def _move(attempt: Attempt, seconds: float, step: int) -> None:
    """An attempt was alive so long after its last sign of life, at some iteration."""
    (began, until), more = attempt.seconds, max(0.0, seconds)
    attempt.seconds, attempt.last = (began, until + more), attempt.last + more
    attempt.reached = max(attempt.reached, step)


def _with_jobs(found: list[Attempt], file: Path) -> list[Attempt]:
    """The same with what jobs.jsonl knows, and with the jobs in which no training began."""
    rows = list(read_rows(file))
    begins = [number for number, row in enumerate(rows) if row["event"] == "begin"]
    for number, after in zip_longest(begins, begins[1:]):
        job, end = rows[number], _end_of(rows[number], rows[number + 1 :])
        next_one = rows[after] if after else None
        until = min(row["wall"] if row else inf for row in (next_one, end))
        own = [attempt for attempt in found if job["wall"] <= attempt.began < until]
        if not own:
            own = [Attempt(job["wall"], job["wall"])]
            found.append(own[0])
        own[0].began = job["wall"]
        if end:
            _close(own[-1], end)
    found.sort(key=lambda attempt: attempt.began)
    for attempt in found[:-1]:
        attempt.ended = attempt.ended or KILLED
    return found


def _end_of(job: dict[str, Any], later: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The end of a job that began, in the lines after that; another may have begun meanwhile. Of
    two, the later one knows better."""
    own = (row for row in later if row["job"] == job["job"])
    ends = list(takewhile(lambda row: row["event"] == "end", own))
    return ends[-1] if ends else None


def _close(attempt: Attempt, end: dict[str, Any]) -> None:
    """What a job's end says of its last attempt."""
    status, again = end["status"], end["requeue"]
    if status is not None:  # Else it was found to have ended, when the next one would begin.
        attempt.last = max(attempt.last, end["wall"])
    attempt.queued = again
    if attempt.ended is None:
        attempt.ended, attempt.finished = end["reason"], status == 0
        stopped = status in STOPPED or end["reason"] == CANCELLED
        attempt.failed = not (again or attempt.finished or stopped)
    elif not (again or attempt.finished):
        attempt.ended = f"{attempt.ended}; {end['reason']}"
