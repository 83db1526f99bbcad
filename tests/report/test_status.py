"""How a run is doing: every figure of hand-written runs, added up by hand."""

from __future__ import annotations

import os
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from stack.report.journal import CANCELLED, KILLED, Attempt, attempts
from stack.report.status import BOUNDS, HEALTH, LOADING, PATIENCE, restarts, status, warnings
from stack.util.errors import UserError
from tests.report.journals import (
    beat,
    begin,
    end,
    ended,
    killed_twice,
    row,
    save,
    start,
    write_run,
)


def test_killed_twice(tmp_path: Path) -> None:
    """Under way: 1000 to 1290, 1500 to 1710, 2000 to 2190; of that, 440 s are in the weights."""
    run = killed_twice(tmp_path)
    save(run, 20)
    mark = save(run, 30) / "COMMIT.json"
    os.utime(mark, (2100, 2100))
    found = status(run, now=2200)
    assert found.pop("goodput") == pytest.approx(440 / 690)
    assert found == {
        "run": str(run),
        "state": "running",
        "reason": None,
        "step": 44,
        "total_steps": 100,
        "images_per_second": 12.5,
        "seconds_per_step": 10.0,
        "seconds_left": 560.0,
        "restarts": [
            {
                "wall": 1500,
                "step": 20,
                "reason": KILLED,
                "lost_steps": 5,
                "lost_seconds": 50.0,
                "away_seconds": 210.0,
            },
            {
                "wall": 2000,
                "step": 30,
                "reason": "status 75: a rank was gone",
                "lost_steps": 6,
                "lost_seconds": 60.0,
                "away_seconds": 290.0,
            },
        ],
        "last_checkpoint": {
            "folder": str(run / "checkpoints" / "step-0000030"),
            "step": 30,
            "age_seconds": 100.0,
        },
        "health": {
            "clipped": 0.5,
            "losses": {"fake": 2.0},
            "warnings": ["50% of the ratios are at r_min or r_max"],
        },
    }


LOG = [start(100), row(10, 50.0)]
"""Last sign of life at 150, where a case says nothing else."""
JOB = begin(90)
STATES: dict[str, tuple[str, float, dict[str, Any]]] = {
    "nothing yet": ("new", 0, {}),
    "just begun": ("running", 90 + LOADING - 1, {"jobs": [JOB]}),
    "never came to train": ("silent", 90 + LOADING + 1, {"jobs": [JOB]}),
    "under way": ("running", 150 + PATIENCE - 1, {"log": LOG}),
    "nothing for long": ("silent", 150 + PATIENCE + 1, {"log": LOG}),
    "slow iterations": (
        "running",
        200 + PATIENCE + 5 * 60 - 1,
        {"log": LOG, "last": beat(10, 200.0, seconds_per_step=60.0)},
    ),
    "nothing for long, as iterations go": (
        "silent",
        200 + PATIENCE + 5 * 60 + 1,
        {"log": LOG, "last": beat(10, 200.0, seconds_per_step=60.0)},
    ),
    "in its first iteration": (
        "running",
        160,
        {"log": LOG, "last": beat(10, 150.0, seconds_per_step=None)},
    ),
    "back in the queue": (
        "queued",
        1e9,
        {
            "log": [*LOG, ended("stopped", 10, 50.0, "SIGUSR1")],
            "jobs": [JOB, end(160, 85, "stopped by a signal", again=True)],
        },
    ),
    "crashed and back in the queue": (
        "queued",
        1e9,
        {
            "log": [*LOG, ended("failed", 10, 50.0, "a rank is gone")],
            "jobs": [JOB, end(160, 75, "status 75", again=True)],
        },
    ),
    "stopped by hand": ("stopped", 160, {"log": [*LOG, ended("stopped", 10, 50.0, "SIGINT")]}),
    "cancelled": ("stopped", 160, {"log": LOG, "jobs": [JOB, end(160, 143, CANCELLED)]}),
    "failed": ("failed", 160, {"log": [*LOG, ended("failed", 10, 50.0, "no disk")]}),
    "failed before training": ("failed", 160, {"jobs": [JOB, end(95, 2, "status 2")]}),
    "given up": ("failed", 160, {"log": LOG, "jobs": [JOB, end(160, 1, "3 starts")]}),
    "finished": ("finished", 1e9, {"log": [*LOG, ended("finished", 10, 50.0)]}),
    "finished, and started again": (
        "finished",
        1e9,
        {
            "log": [*LOG, ended("finished", 10, 50.0)],
            "jobs": [JOB, end(160, 0, "finished"), begin(200), end(210, 0, "finished")],
        },
    ),
    "going on after it had finished": (
        "running",
        360,
        {"log": [*LOG, ended("finished", 10, 50.0), start(350, step=10, time=50.0)]},
    ),
    "before starts were logged": ("silent", 1e12, {"log": [row(10, 50.0)]}),
}


@pytest.mark.parametrize("name", STATES)
def test_state(name: str, tmp_path: Path) -> None:
    state, now, files = STATES[name]
    assert status(write_run(tmp_path, **files), now)["state"] == state


TRAININGS = [
    # what vae's and unet's logs say, whether the teacher is there, now, state, step, restarts
    (1, 0, False, 45, "running", 2, 0),
    (1, 0, False, 400, "silent", 2, 0),
    (2, 0, False, 100, "running", 4, 0),
    (2, 0, False, 50 + LOADING - 1, "running", 4, 0),
    (2, 0, False, 50 + LOADING + 1, "silent", 4, 0),
    (2, 2, False, 150, "running", 3, 0),
    (2, 3, False, 150, "running", 6, 0),
    (2, 3, True, 1e9, "finished", 6, 0),
    (2, 4, False, 250, "running", 1, 1),
]


@pytest.mark.parametrize("case", TRAININGS)
def test_a_teachers_two_trainings(case: tuple[Any, ...], tmp_path: Path) -> None:
    """One process began at 10: vae from 20 to 50, unet from 60 to 120."""
    vae, unet, teacher, now, state, step, count = case
    write_run(tmp_path)
    log = [start(20, began=10), row(2, 20.0), ended("finished", 4, 30.0)]
    write_run(tmp_path / "vae", log=log[: vae + 1])
    logs = {
        2: [start(60, began=10), row(3, 30.0)],
        3: [start(60, began=10), row(3, 30.0), ended("finished", 6, 60.0)],
        4: [start(60, began=10), row(3, 30.0), start(240, began=230, step=1, time=10.0)],
    }
    if unet:
        write_run(tmp_path / "unet", log=logs[unet])
    if teacher:
        (tmp_path / "teacher").mkdir()
    found = status(tmp_path, now)
    assert (found["state"], found["step"], len(found["restarts"])) == (state, step, count)


def test_the_share_of_two_trainings(tmp_path: Path) -> None:
    """Under way from 10 to 90, killed, and from 230 to 250; 30 s of vae and 20 s of unet stay."""
    write_run(tmp_path)
    write_run(tmp_path / "vae", log=[start(20, began=10), ended("finished", 4, 30.0)])
    unet = [start(60, began=10), row(3, 30.0), start(240, began=230, step=1, time=10.0)]
    write_run(tmp_path / "unet", log=[*unet, row(2, 20.0)])
    found = status(tmp_path, now=251)
    assert found["goodput"] == pytest.approx((30 + 20) / (80 + 20))
    [restart] = found["restarts"]
    assert (restart["lost_steps"], restart["lost_seconds"], restart["away_seconds"]) == (2, 20, 140)


def test_what_a_finished_training_did_is_not_lost(tmp_path: Path) -> None:
    """Though a crash came between it and the next one."""
    write_run(tmp_path, jobs=[begin(5), begin(100), end(110, 1), begin(200)])
    write_run(tmp_path / "vae", log=[start(20, began=10), ended("finished", 4, 30.0)])
    write_run(tmp_path / "unet", log=[start(220, began=210)])
    found = status(tmp_path, now=221)["restarts"]
    assert [(one["lost_steps"], one["lost_seconds"]) for one in found] == [(0, 0), (0, 0)]


GOODPUTS: dict[str, tuple[float | None, dict[str, Any]]] = {
    "nothing yet": (None, {}),
    "loading counts": (50 / 60, {"log": LOG, "jobs": [begin(90)]}),
    "the end of a job counts": (50 / 90, {"log": LOG, "jobs": [begin(90), end(180, 1, "x")]}),
    "the queue does not": (
        50 / 80,
        {
            "log": [*LOG, start(1030, began=1010, step=10, time=50.0)],
            "jobs": [begin(100), begin(1000, step=10)],
        },
    ),
    "nor does the time before a job was not let begin": (
        50 / 50,
        {"log": LOG, "jobs": [begin(100), begin(300), end(9000, None, "2 starts")]},
    ),
    "what a fork brings along is not its own": (
        25 / 50,
        {"log": [start(1000, began=975, step=99, time=5000.0), row(100, 5025.0)]},
    ),
    "crashes before training": (
        50 / 150,
        {"log": LOG, "jobs": [begin(100), begin(200), end(300, 1, "status 1")]},
    ),
}


@pytest.mark.parametrize("name", GOODPUTS)
def test_goodput(name: str, tmp_path: Path) -> None:
    share, files = GOODPUTS[name]
    found = status(write_run(tmp_path, **files), now=9999)["goodput"]
    assert found == (share if share is None else pytest.approx(share))


def test_what_a_crash_lost_is_told_once_and_where_it_belongs(tmp_path: Path) -> None:
    """Killed after 10 of which 5 were saved; a job that did not come to train; on from 5."""
    jobs = [begin(90), begin(200, step=5), end(220, 1, "status 1", again=True)]
    write_run(tmp_path, log=LOG, jobs=jobs)
    [first] = status(tmp_path, now=230)["restarts"]
    assert (first["step"], first["lost_steps"], first["lost_seconds"]) == (10, 0, 0)
    jobs.append(begin(300, step=5))
    write_run(tmp_path, log=[*LOG, start(320, began=310, step=5, time=25.0)], jobs=jobs)
    found = status(tmp_path, now=330)["restarts"]
    assert [(one["step"], one["lost_steps"], one["lost_seconds"]) for one in found] == [
        (5, 5, 25.0),
        (5, 0, 0.0),
    ]
    assert [(one["away_seconds"], one["reason"]) for one in found] == [
        (50, KILLED),
        (80, "status 1"),
    ]


@pytest.mark.parametrize("reached", [9, 10])
def test_going_on_after_the_last_save_lost_nothing(reached: int) -> None:
    """The log may not have come as far as the save, which may have taken its time."""
    before = Attempt(0, 100, 0, reached, (0, 95), "SIGTERM")
    [found] = restarts([before, Attempt(90, 200, 10, 20, (80.5, 180))])
    assert (found["lost_steps"], found["lost_seconds"], found["away_seconds"]) == (0, 0, 0)


def test_the_newest_value_of_every_figure(tmp_path: Path) -> None:
    """Also of those that are not in every row; events are none."""
    figures = {name: number / 8 for number, name in enumerate(HEALTH.values(), 1)}
    log = [
        start(1),
        row(1, 1.0, **dict.fromkeys(figures, 9.0)),
        row(2, 2.0, **figures),
        row(3, 3.0),
    ]
    log += [row(4, 4.0, **{"loss/fake": 1.0, "loss/gan": nan}), ended("stopped", 4, 4.0, "x")]
    health = status(write_run(tmp_path, log=log), now=5)["health"]
    assert {HEALTH[name]: health[name] for name in HEALTH} == figures
    assert health["losses"] == {"fake": 1.0, "gan": pytest.approx(nan, nan_ok=True)}
    assert "loss gan is not finite" in health["warnings"]


@pytest.mark.parametrize("name", BOUNDS)
def test_warnings_begin_at_their_bound(name: str) -> None:
    bound = BOUNDS[name][0]
    assert len(warnings({"losses": {}, name: bound})) == 1
    assert warnings({"losses": {}, name: 0.99 * bound}) == []
    assert name in HEALTH


@pytest.mark.parametrize(("value", "count"), [(nan, 1), (inf, 1), (-inf, 1), (1e30, 0)])
def test_losses_that_are_not_finite(value: float, count: int) -> None:
    assert len(warnings({"losses": {"fake": value}})) == count


def test_a_step_is_the_furthest_that_is_known(tmp_path: Path) -> None:
    """A heartbeat is written every few seconds only."""
    last = beat(8, 140.0, total_steps=20, seconds_per_step=2.0)
    found = status(write_run(tmp_path, log=LOG, last=last), now=151)
    assert (found["step"], found["seconds_left"]) == (10, 20.0)


def test_a_checkpoint_without_its_mark_is_not_the_last(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert status(run)["last_checkpoint"] is None
    save(run, 10)
    (save(run, 20) / "COMMIT.json").unlink()
    found = status(run, now=0)["last_checkpoint"]
    assert (found["step"], found["age_seconds"]) == (10, 0.0)


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.jsonl", "jobs.jsonl"])
def test_any_of_these_makes_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert status(tmp_path)["state"] == "new"


def test_a_folder_of_runs_is_not_a_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        killed_twice(tmp_path / name)
    assert len(attempts(tmp_path / "one")) == 3
    for path in (tmp_path, tmp_path / "none", tmp_path / "one" / "recipe.yaml"):
        with pytest.raises(UserError, match=f"{path}: not a run folder"):
            status(path)
