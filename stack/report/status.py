"""How a run is doing, from its folder alone."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from stack.checkpoint import folders
from stack.report.journal import Attempt, attempts, heartbeat, read_rows, trainings
from stack.util.errors import UserError

PATIENCE = 120.0
"""Seconds without a heartbeat, besides a few iterations, after which a run counts as silent."""
_ITERATIONS = 5

HEALTH = {
    "skipped": "skipped",
    "bad_samples": "bad_samples",
    "clipped": "r/clipped",
    "discriminator_accuracy": "discriminator/accuracy",
    "data_wait": "data_wait",
    "save_wait": "save_wait",
    "slowest_rank": "ranks/slowest",
    "rank_lag": "ranks/lag",
    "gpu_gb": "memory/gpu_gb",
    "host_gb": "memory/host_gb",
}
"""Figures of health, and their names in the log."""

BOUNDS = {
    "skipped": (1, "{:.0f} iterations were skipped: a loss or gradient was not finite"),
    "bad_samples": (1, "{:.0f} damaged samples were replaced"),
    "clipped": (0.2, "{:.0%} of the ratios are at r_min or r_max"),
    "discriminator_accuracy": (0.95, "the discriminator is right {:.0%} of the time"),
    "data_wait": (0.1, "{:.0%} of the time goes into waiting for data"),
    "save_wait": (0.02, "{:.1%} of the time goes into waiting for saves"),
    "rank_lag": (0.1, "the slowest rank holds the others up for {:.0%} of an iteration"),
}
"""From where on a figure is worth a warning, and its words."""


def status(run: Path, now: float | None = None) -> dict[str, Any]:
    """State of a run, as ``stack status --json`` writes it.

    "state" is running, silent (no end, and no sign of life either), queued (its job will start
    again), stopped, failed, finished, or new (nothing has been trained yet). "goodput" is the share
    of the time under way, queues left out, that training took whose result is still there.

    Raises:
        UserError: not a run's folder.
    """
    now = time.time() if now is None else now
    past = attempts(run)
    if not (past or (run / "recipe.yaml").is_file() or (run / "jobs.jsonl").is_file()):
        raise UserError(f"{run}: not a run folder (no recipe.yaml, no log); give one with a run")
    log = next(reversed(trainings(run)), run)
    beat = heartbeat(log) or {}
    last = _last_figures(log)
    step, total, pace = (
        beat.get("step", last.get("step", 0)),
        beat.get("total_steps"),
        beat.get("seconds_per_step"),
    )
    health = {name: last[key] for name, key in HEALTH.items() if key in last}
    health["losses"] = {key[5:]: value for key, value in last.items() if key.startswith("loss/")}
    health["warnings"] = warnings(health)
    return {
        "run": str(run),
        "state": state_of(past, beat, now),
        "reason": past[-1].ended if past else None,
        "step": step,
        "total_steps": total,
        "images_per_second": last.get("images_per_second"),
        "seconds_per_step": pace,
        "seconds_left": (total - step) * pace if total and pace else None,
        "goodput": _goodput(past),
        "restarts": restarts(past),
        "last_checkpoint": _last_checkpoint(log, now),
        "health": health,
    }


def state_of(past: list[Attempt], beat: dict[str, Any], now: float) -> str:
    """One word for where a run is."""
    if not past:
        return "new"
    last = past[-1]
    if last.finished:
        return "finished"
    if last.ended is not None:
        return "queued" if last.queued else "failed" if last.failed else "stopped"
    patience = PATIENCE + _ITERATIONS * (beat.get("seconds_per_step") or 0)
    return "running" if now - last.last < patience else "silent"


def restarts(past: list[Attempt]) -> list[dict[str, Any]]:
    """What was lost from each start to the next, and why."""
    rows = []
    for before, after in pairwise(past):
        step = before.reached if after.step is None else after.step
        kept = after.seconds[0] if after.step is not None else before.seconds[1]
        rows.append(
            {
                "wall": after.began,
                "step": step,
                "reason": before.ended,
                "lost_steps": max(0, before.reached - step) if before.step is not None else 0,
                "lost_seconds": max(0.0, before.seconds[1] - kept),
                "away_seconds": max(0.0, after.began - before.last),
            }
        )
    return rows


def warnings(health: dict[str, Any]) -> list[str]:
    """What in some figures of health a person should look at."""
    found = [
        text.format(health[name])
        for name, (bound, text) in BOUNDS.items()
        if health.get(name, 0) >= bound
    ]
    broken = [name for name, value in health["losses"].items() if value != value]
    return found + [f"loss {name} is not a number" for name in broken]


def _goodput(past: list[Attempt]) -> float | None:
    busy = sum(attempt.last - attempt.began for attempt in past)
    trained = [attempt for attempt in past if attempt.step is not None]
    return min(1.0, trained[-1].seconds[1] / busy) if trained and busy > 0 else None


def _last_figures(folder: Path) -> dict[str, Any]:
    """The newest value of everything that is logged."""
    found: dict[str, Any] = {}
    for row in read_rows(folder / "metrics.jsonl"):
        if "event" not in row:
            found |= row
    return found


def _last_checkpoint(folder: Path, now: float) -> dict[str, Any] | None:
    """The newest committed one; whether it is whole, ``stack checkpoint verify`` tells."""
    there = folders.committed(folder / "checkpoints")
    if not there:
        return None
    age = now - (there[-1] / folders.COMMIT).stat().st_mtime
    return {"folder": str(there[-1]), "step": folders.step_of(there[-1]), "age_seconds": age}
