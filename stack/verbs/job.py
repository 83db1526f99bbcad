"""``stack job``: what slurm/env.sh asks before a job trains and after it has.

A job may be put back into the queue for good reasons (preempted, out of time, a node gone) and in
a loop (an error at every start). What tells them apart is progress: a newer checkpoint.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack.checkpoint import folders
from stack.report.journal import CANCELLED, JOBS, STOPPED, note_job, read_rows
from stack.util import exits
from stack.util.errors import UserError


@dataclass(frozen=True)
class Limits:
    """How often a job is put back.

    Args:
        stops: after a preemption or a time limit. crashes: in a row without progress.
    """

    stops: int = 20
    crashes: int = 3


def begin(run: Path, limits: Limits) -> int:
    """Note that a job begins; returns 0.

    Raises:
        UserError: this job has begun too often without progress; noted as its end.
    """
    job, step = os.environ.get("SLURM_JOB_ID"), progress(run)
    past = [row for row in read_rows(run / JOBS) if row["job"] == job]
    idle = crashes(past, step)
    if idle >= limits.crashes:
        reason = f"{idle} starts without progress beyond step {step} (MAX_CRASHES)"
        note_job(run, "end", job=job, status=None, step=step, reason=reason, requeue=False)
        raise UserError(
            f"{run}: job {job}: {reason}; see stack status and {run}/logs, mend the cause, then "
            "submit it anew"
        )
    nodes, tasks = os.environ.get("SLURM_JOB_NODELIST"), os.environ.get("SLURM_NTASKS")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    note_job(run, "begin", job=job, restart=restart, nodes=nodes, tasks=tasks, step=step)
    return 0


def end(run: Path, status: int, state: str, limits: Limits) -> int:
    """Note how a job's training ended; returns 0 if the job should be put back into the queue.

    Args:
        status: of srun. state: of the job as Slurm has it.
    """
    job, step = os.environ.get("SLURM_JOB_ID"), progress(run)
    past = [row for row in read_rows(run / JOBS) if row["job"] == job]
    again, reason = decide(status, state, past, step, limits)
    note_job(run, "end", job=job, status=status, step=step, reason=reason, requeue=again)
    print(f"{run}: {reason}; {'back into the queue' if again else 'not started again'}")
    return 0 if again else 1


def decide(
    status: int, state: str, past: list[dict[str, Any]], step: int, limits: Limits
) -> tuple[bool, str]:
    """Whether a job should be put back into the queue, and what ended it.

    Args:
        past: its lines of jobs.jsonl. step: of its newest checkpoint.
    """
    if status == 0:
        return False, "finished"
    if state.startswith(("CANCELLED", "COMPLETING")):
        return False, CANCELLED
    if status == exits.USER_ERROR:
        return False, "status 2: an error to mend, which the log says"
    if status in STOPPED:
        stops = sum(row["event"] == "end" and row["status"] in STOPPED for row in past)
        if stops >= limits.stops:
            return False, f"stopped by a signal {stops + 1} times (MAX_STOPS)"
        return True, "stopped by a signal"
    reason = f"status {status}"
    if status == exits.PEER_LOST:
        reason += ": a rank was gone, silent or stuck"
    idle = crashes(past, step)
    if idle >= limits.crashes:
        return False, f"{reason}; {idle} starts without progress (MAX_CRASHES)"
    return True, reason


def crashes(past: list[dict[str, Any]], step: int) -> int:
    """Starts at the end of a job's past that came to no newer checkpoint than ``step``, without
    having been asked to stop; also those that never told an end."""
    count = 0
    stopped = False
    for row in reversed(past):
        if row["event"] == "end":
            stopped = row["status"] in STOPPED
        elif row["step"] < step:
            break
        else:
            count += not stopped
            stopped = False
    return count


def progress(run: Path) -> int:
    """Iterations that a run's checkpoints hold, of all its trainings."""
    newest = [folders.committed(root)[-1:] for root in folders.roots(run)]
    return sum(folders.step_of(folder) for found in newest for folder in found)
