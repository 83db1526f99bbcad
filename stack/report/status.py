"""How a run is doing, from its folder alone."""

from __future__ import annotations

import time
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from stack.checkpoint import folders
from stack.report.alerts import alerts
from stack.report.history import History
from stack.report.journal import JOBS, Attempt, attempts, heartbeat, read_rows
from stack.util.errors import UserError

PATIENCE = 120.0
"""Seconds without a heartbeat, besides a few iterations, after which a run counts as silent."""
_ITERATIONS = 5
LOADING = 600.0
"""The same from a job's begin to its first iteration."""

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
    "skipped": (1, "iterations skipped, a loss or gradient not being finite: {:.0f}"),
    "bad_samples": (1, "damaged samples replaced: {:.0f}"),
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
    if not any((run / name).is_file() for name in ("recipe.yaml", "metrics.jsonl", JOBS)):
        raise UserError(f"{run}: not a run folder (no recipe.yaml, no log); give one with a run")
    past = attempts(run)
    trained = [attempt for attempt in past if attempt.step is not None]
    log = run / trained[-1].training if trained else run
    beat, last = heartbeat(log) or {}, _last_figures(log)
    step = trained[-1].reached if trained else 0
    total, pace = beat.get("total_steps"), beat.get("seconds_per_step")
    health = {name: last[key] for name, key in HEALTH.items() if key in last}
    health["losses"] = {key[5:]: value for key, value in last.items() if key.startswith("loss/")}
    health["warnings"] = warnings(health) + [words for _, words in _alerts(log)]
    return {
        "run": str(run),
        "state": state_of(past, beat, now, parts_left=log != run and not _has_teacher(run)),
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


def state_of(
    past: list[Attempt], beat: dict[str, Any], now: float, *, parts_left: bool = False
) -> str:
    """One word for where a run is.

    Args:
        parts_left: a training that has finished is not the last thing that the run does.
    """
    if not past:
        return "new"
    last = past[-1]
    if last.finished and not parts_left:
        return "finished"
    if last.ended is not None and not last.finished:
        return "queued" if last.queued else "failed" if last.failed else "stopped"
    patience = PATIENCE + _ITERATIONS * (beat.get("seconds_per_step") or 0)
    if last.step is None or last.finished:
        patience = LOADING
    return "running" if now - last.last < patience else "silent"


def restarts(past: list[Attempt]) -> list[dict[str, Any]]:
    """What was lost from each start to the next that trained, and why."""
    rows = []
    for number, (before, after) in enumerate(pairwise(past), 1):
        if None not in (before.step, after.step) and before.training != after.training:
            continue  # The next part of the same run.
        step, lost_steps, lost_seconds = _lost(past[:number], past[number:])
        rows.append(
            {
                "wall": after.began,
                "step": step,
                "reason": before.ended,
                "lost_steps": lost_steps,
                "lost_seconds": lost_seconds,
                "away_seconds": max(0.0, after.began - before.last),
            }
        )
    return rows


def _lost(past: list[Attempt], later: list[Attempt]) -> tuple[int, int, float]:
    """Where the run went on after the last of some attempts, and the steps and seconds of that
    attempt which were lost; none as long as it has not gone on."""
    for resumed in later:
        if resumed.step is not None:
            before = past[-1]
            steps, seconds = before.reached - resumed.step, before.seconds[1] - resumed.seconds[0]
            other = before.step is None or before.training != resumed.training
            if other or steps <= 0:  # What came after the last step was a save, no work.
                steps, seconds = 0, 0.0
            return resumed.step, steps, max(0.0, seconds)
    return max(attempt.reached for attempt in past), 0, 0.0


def warnings(health: dict[str, Any]) -> list[str]:
    """What in some figures of health a person should look at."""
    found = [
        text.format(health[name])
        for name, (bound, text) in BOUNDS.items()
        if health.get(name, 0) >= bound
    ]
    broken = [name for name, value in health["losses"].items() if not isfinite(value)]
    return found + [f"loss {name} is not finite" for name in broken]


def _alerts(folder: Path) -> list[tuple[str, str]]:
    rows = [row for row in read_rows(folder / "metrics.jsonl") if "event" not in row]
    return alerts(History(rows)) if rows else []


def _goodput(past: list[Attempt]) -> float | None:
    busy, seen = 0.0, 0.0
    kept: dict[str, tuple[float, float]] = {}
    for attempt in past:
        busy += max(0.0, attempt.last - max(attempt.began, seen))
        seen = max(seen, attempt.last)
        if attempt.step is not None:
            first, _ = kept.get(attempt.training, attempt.seconds)
            kept[attempt.training] = (first, attempt.seconds[1])
    trained = sum(until - first for first, until in kept.values())
    return min(1.0, trained / busy) if kept and busy > 0 else None


def _last_figures(folder: Path) -> dict[str, Any]:
    """The newest value of everything that is logged."""
    found: dict[str, Any] = {}
    for row in read_rows(folder / "metrics.jsonl"):
        if "event" not in row:
            found |= row
    return found


def _last_checkpoint(folder: Path, now: float) -> dict[str, Any] | None:
    """The newest committed one; whether it is whole, ``stack checkpoint verify`` tells."""
    marks = [found / folders.COMMIT for found in folders.committed(folder / "checkpoints")]
    mark = next((mark for mark in reversed(marks) if mark.is_file()), None)
    if mark is None:
        return None
    age = max(0.0, now - mark.stat().st_mtime)
    return {"folder": str(mark.parent), "step": folders.step_of(mark.parent), "age_seconds": age}


def _has_teacher(run: Path) -> bool:
    """Whether a run of several trainings has come to its end, which is a teacher."""
    return (run / "teacher").is_dir()
