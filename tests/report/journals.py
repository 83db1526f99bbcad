"""Run folders written by hand, with figures that one can add up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def start(wall: float, *, began: float | None = None, step: int = 0, time: float = 0.0) -> Row:
    """The event of a start, or of one that goes on after ``step`` iterations."""
    row: Row = {"event": "resume" if step else "start", "step": step, "time": time, "wall": wall}
    return row if began is None else row | {"began": began}


def row(step: int, time: float, **figures: Any) -> Row:
    return {"step": step, "time": time, **figures}


def ended(event: str, step: int, time: float, reason: str = "") -> Row:
    return {"event": event, "step": step, "time": time, "wall": 0.0, "reason": reason}


def begin(wall: float, *, job: str = "7", step: int = 0) -> Row:
    return {"event": "begin", "wall": wall, "job": job, "step": step}


def end(
    wall: float, status: int | None, reason: str = "", *, again: bool = False, job: str = "7"
) -> Row:
    told = {"status": status, "reason": reason, "requeue": again, "step": 0}
    return {"event": "end", "wall": wall, "job": job, **told}


def beat(step: int, wall: float, **more: Any) -> Row:
    return {"step": step, "wall": wall, **more}


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_run(
    run: Path,
    *,
    log: Iterable[Row] | None = None,
    jobs: Iterable[Row] | None = None,
    last: Row | None = None,
    earlier: Iterable[Row] | None = None,
) -> Path:
    """A run's folder; ``last`` and ``earlier`` are heartbeats."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.yaml").touch()
    files = {"metrics.jsonl": log, "jobs.jsonl": jobs, "heartbeats.jsonl": earlier}
    for name, rows in files.items():
        if rows is not None:
            (run / name).write_text(lines(rows))
    if last:
        (run / "heartbeat.json").write_text(json.dumps(last, indent=2))
    return run


def save(run: Path, step: int) -> Path:
    """A checkpoint's folder with nothing in it."""
    folder = run / "checkpoints" / f"step-{step:07d}"
    folder.mkdir(parents=True)
    (folder / "COMMIT.json").write_text("{}")
    return folder


def killed_twice(run: Path) -> Path:
    """Killed after 25 iterations, of which 20 were saved, and after 36, of which 30 were; an
    iteration takes 10 s."""
    return write_run(
        run,
        jobs=[
            begin(1000),
            begin(1500, step=20),
            end(1710, 75, "status 75: a rank was gone", again=True),
            begin(2000, step=30),
        ],
        log=[
            start(1040, began=1010),
            row(10, 100.0, **{"loss/fake": 3.0, "r/clipped": 0.5}),
            row(20, 200.0),
            start(1540, began=1510, step=20, time=200.0),
            row(30, 300.0),
            start(2050, began=2010, step=30, time=300.0),
            row(40, 400.0, images_per_second=12.5, **{"loss/fake": 2.0}),
        ],
        earlier=[beat(25, 1290.0), beat(36, 1700.0)],
        last=beat(44, 2190.0, total_steps=100, seconds_per_step=10.0),
    )
