"""``stack job``: what slurm/env.sh asks before a job trains and after it has.

A job may be put back into the queue for good reasons (preempted, out of time, a node gone) and in
a loop (an error at every start). What tells them apart is progress: a newer checkpoint.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack.checkpoint import folders
from stack.parallel.launch import consequence
from stack.report.journal import (
    CANCELLED,
    JOBS,
    STOPPED,
    heartbeat,
    note_job,
    read_rows,
    trainings,
)
from stack.report.status import LOADING
from stack.util import exits
from stack.util.errors import UserError

REFUSED, LATE = "REFUSED", "LATE"
"""What slurm/env.sh says instead of a state where Slurm would not take the job back, and where the
job's time is nearly over and ranks have not ended."""
ENDING = "Slurm is ending this start; it begins again if it was not cancelled"
OVER = 2
"""Status with which a job is not to start again. All others but 0 are failures to decide."""
_GONE = "JOBS_GONE"
"""Variable: jobs of a run that Slurm has no more. slurm/env.sh sets it once it has asked."""
_LOCK = ".jobs.lock"
_LEFT = 60.0
"""Age in seconds of a lock that a job has left behind; one is held for less than a second."""


@dataclass(frozen=True)
class Limits:
    """How many starts in a row without a newer checkpoint are enough for a job.

    Args:
        stops: that ended by a preemption, a time limit or a node's failure. crashes: by all else.
    """

    stops: int = 20
    crashes: int = 3


def begin(run: Path, limits: Limits) -> int:
    """Note that a job begins; returns 0.

    Raises:
        UserError: another job has the run; or this one has begun too often without progress, which
            is noted as its end.
    """
    with _locked(run):
        return _begin(run, limits)


def _begin(run: Path, limits: Limits) -> int:
    job, step = os.environ.get("SLURM_JOB_ID"), progress(run)
    rows = list(read_rows(run / JOBS))
    _alone(run, rows, job)
    crashed, stopped = idle([row for row in rows if row["job"] == job], step)
    if crashed >= limits.crashes or stopped >= limits.stops:
        reason = f"{crashed + stopped} starts without progress beyond step {step}"
        note_job(run, "end", job=job, status=None, step=step, reason=reason, requeue=False)
        raise UserError(
            f"{run}: job {job}: {reason}; see stack status and {run}/logs, mend the cause, then "
            "submit it anew"
        )
    nodes, tasks = os.environ.get("SLURM_JOB_NODELIST"), os.environ.get("SLURM_NTASKS")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    note_job(run, "begin", job=job, restart=restart, nodes=nodes, tasks=tasks, step=step)
    return 0


def end(run: Path, status: int, state: str, limits: Limits, logs: Path | None = None) -> int:
    """Note how a job's training ended; returns 0 if the job should be put back into the queue,
    else OVER.

    Args:
        status: of srun. state: of the job as Slurm has it. logs: see `explaining`.
    """
    status = explaining(status, logs)
    job, step = os.environ.get("SLURM_JOB_ID"), progress(run)
    past = [row for row in read_rows(run / JOBS) if row["job"] == job]
    again, reason = decide(status, state, past, step, limits)
    if reason == ENDING and status not in STOPPED:  # Slurm's signal, however ranks took it.
        status = 128 + signal.SIGTERM
    note_job(run, "end", job=job, status=status, step=step, reason=reason, requeue=again)
    then = "" if reason == ENDING else "; back into the queue" if again else "; not started again"
    print(f"{run}: {reason}{then}")
    return 0 if again else OVER


def explaining(status: int, logs: Path | None) -> int:
    """The status of the rank whose failure explains the others', of equals the first to end, or
    srun's, which is the highest, where no rank has told of one.

    Args:
        status: srun's. logs: folder where slurm/rank.sh left each rank's, as ``rank-N.status``.
    """
    files = logs.glob("rank-*.status") if logs else ()
    told = [file.read_text().strip() for file in sorted(files, key=lambda f: f.stat().st_mtime_ns)]
    broken = [int(code) for code in told if code.isdigit() and int(code)]
    return min(broken, key=_consequence, default=status) if status else 0


def _consequence(status: int) -> int:
    """`consequence` of a shell's status: a signal that asked for a stop was meant for this rank."""
    killed = status > 128 and status not in STOPPED
    return consequence(128 - status if killed else status)


def decide(
    status: int, state: str, past: list[dict[str, Any]], step: int, limits: Limits
) -> tuple[bool, str]:
    """Whether a job should be put back into the queue, and what ended it.

    Args:
        past: its lines of jobs.jsonl. step: of its newest checkpoint.
    """
    if status == 0:
        return False, "finished"
    if state.startswith("CANCELLED"):
        return False, CANCELLED
    if state.startswith("COMPLETING"):
        return False, ENDING
    if state == REFUSED:
        return False, f"status {status}, and scontrol requeue failed; submit it again"
    if status == exits.USER_ERROR:
        return False, "status 2: an error to mend, which the log says"
    crashed, stopped = idle([*past, {"event": "end", "status": status, "reason": ""}], step)
    if status in STOPPED:
        if stopped >= limits.stops:
            return False, f"stopped by a signal {stopped} times without progress (MAX_STOPS)"
        late = state == LATE
        return True, "out of time before its ranks had ended" if late else "stopped by a signal"
    reason = f"status {status}"
    if status == exits.PEER_LOST:
        reason += ": a rank was gone, silent or stuck"
    if crashed >= limits.crashes:
        return False, f"{reason}; {crashed} starts without progress (MAX_CRASHES)"
    return True, reason


def idle(past: list[dict[str, Any]], step: int) -> tuple[int, int]:
    """Starts at the end of a job's past that came to no newer checkpoint than ``step``: those that
    crashed, and those that were stopped by a signal or by Slurm, which lets a job begin anew
    without an end where a node failed."""
    crashed = stopped = 0
    end = None
    for row in reversed(past):
        if row["event"] == "end":
            end = row
            continue
        if row["step"] < step:
            break
        if end and end["status"] not in STOPPED and end["reason"] != CANCELLED:
            crashed += 1
        else:
            stopped += 1
        end = None
    return crashed, stopped


def _alone(run: Path, rows: list[dict[str, Any]], job: str | None) -> None:
    """Refuse a run that another job has: they would write over each other."""
    for other, last in {row["job"]: row for row in rows}.items():
        if other != job and last["event"] == "begin" and not _gone(run, last):
            raise UserError(
                f"{run}: job {other} has it, at work or about to go on; scancel it first, or "
                "choose another OUT"
            )


def _gone(run: Path, begun: dict[str, Any]) -> bool:
    """Whether a job that has begun and not ended is over, by Slurm's word: one that Slurm was not
    asked about has begun since. Without that word it is over when it has long been silent; loading,
    evaluations and saves take their time."""
    gone = os.environ.get(_GONE)
    if gone is not None:
        return begun["job"] in gone.split()
    beats = [heartbeat(folder) for folder in trainings(run)]
    signs = [beat["wall"] for beat in beats if beat and beat["job"] == begun["job"]]
    return time.time() - max([begun["wall"], *signs]) > LOADING


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """One job at a time is inside. By a file's creation, as not every shared disk has locks."""
    run.mkdir(parents=True, exist_ok=True)
    lock = run / _LOCK
    while not _created(lock):
        if _age(lock) > _LEFT:  # By its own age: a waiter must not remove what another has made.
            lock.unlink(missing_ok=True)
        time.sleep(0.1)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _created(file: Path) -> bool:
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _age(file: Path) -> float:
    """Seconds since a file was made; 0 where it is gone."""
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def progress(run: Path) -> int:
    """Iterations that a run's checkpoints hold, of all its trainings."""
    newest = [folders.committed(root)[-1:] for root in folders.roots(run)]
    return sum(folders.step_of(folder) for found in newest for folder in found)
