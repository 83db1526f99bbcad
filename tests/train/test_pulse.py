"""Signs of life, and runs whose ranks show none; the watchdog alone is in test_watchdog.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stack.checkpoint.saver import Saver
from stack.report.journal import attempts
from stack.train.pulse import Pulse
from tests import forked
from tests.forked import Fork
from tests.pipeline import World, finish, logged_rows, recipe_fields, write_recipe
from tests.train.clock import Clock


def beat(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "heartbeat.json").read_text())


def test_what_a_heartbeat_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of a step over this start, and nothing of the place that others have."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    clock = Clock(monkeypatch)
    alive = Pulse(tmp_path, 0, 50)
    clock.now = 110
    alive.beat(20)
    place = {"host": socket.gethostname(), "pid": os.getpid(), "job": "7"}
    steps = {"step": 20, "total_steps": 50, "seconds_per_step": None}
    assert beat(tmp_path) == {**steps, **place, "wall": 1e9 + 110}
    clock.now = 122
    alive.beat(24)
    assert (beat(tmp_path)["step"], beat(tmp_path)["seconds_per_step"]) == (24, 3.0)
    alive.close()


def test_heartbeats_are_seconds_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    alive = Pulse(tmp_path, 0, 50)
    written = []
    for step in range(24):
        alive.beat(step)
        written.append(beat(tmp_path)["step"])
        clock.now += 1
    assert sorted(set(written)) == [0, 5, 10, 15, 20]
    alive.write()
    assert beat(tmp_path)["step"] == 23


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "heartbeat.json").write_text("{}")
    alive = Pulse(tmp_path, 0, 50, silent=True)
    alive.beat(1)
    alive.write()
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat.json"]
    assert beat(tmp_path) == {}


def test_the_last_heartbeat_of_every_start_is_kept(tmp_path: Path) -> None:
    for first in (0, 10, 20):
        alive = Pulse(tmp_path, 0, 50)
        alive.beat(first)
        alive.beat(first + 3)
        alive.write()
    lines = (tmp_path / "heartbeats.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 13]
    assert beat(tmp_path)["step"] == 23


@pytest.mark.slow
def test_the_last_save_may_take_longer_than_an_iteration(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written in the background, it is waited for when no iteration is left."""
    allowed: list[float] = []
    arm, wait = Pulse._arm, Saver.wait

    def noted(saver: Saver) -> None:
        if saver._pending:
            waited.append(allowed[-1])
        wait(saver)

    waited: list[float] = []
    monkeypatch.setattr(
        Pulse, "_arm", lambda alive, seconds: (allowed.append(seconds), arm(alive, seconds))
    )
    monkeypatch.setattr(Saver, "wait", noted)
    fields = recipe_fields(world, iterations=2, parallel={"watchdog": 600})
    fields["checkpoint"] = {"every": 2, "background": True}
    assert (finish(tmp_path, fields) / "checkpoints" / "step-0000002").is_dir()
    assert waited == [6000]
    assert 600 in allowed


def long_run(world: World, folder: Path, ranks: int = 0) -> tuple[list[Fork], Path]:
    """Processes that train for hours, once they have logged a step."""
    fields = recipe_fields(
        world,
        iterations=100_000,
        checkpoint={"every": 100_000},
        parallel={"timeout": 600, "watchdog": 10, "backend": "ddp" if ranks else "none"},
    )
    command, run = ("stack", "distill", write_recipe(folder, fields)), folder / "run"
    processes = forked.start_ranks(*command, ranks=ranks) if ranks else [forked.start(*command)]
    until(lambda: (run / "metrics.jsonl").exists() and steps(run), processes)
    return processes, run


def steps(run: Path) -> list[int]:
    """Of the rows that are wholly there."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row["step"] for row in rows if "event" not in row]


def until(true: Callable[[], object], processes: list[Fork]) -> None:
    deadline = time.monotonic() + 600
    while not true():
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_stands_still_makes_the_other_tell_where_it_was(
    stopped: int, world: World, tmp_path: Path
) -> None:
    ranks, run = long_run(world, tmp_path, ranks=2)
    ranks[stopped].send_signal(signal.SIGSTOP)
    _, told = ranks[1 - stopped].communicate(timeout=600)
    ranks[stopped].kill()
    assert ranks[1 - stopped].returncode == 75, told
    [line] = [line for line in told.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: {run}: iteration ")
    assert "no progress for 10 s (parallel.watchdog)" in line
    assert "collectives.py" in told
    assert 'File "' in told
    assert "Current thread" in told


@pytest.mark.slow
def test_a_killed_run_tells_what_it_lost(world: World, tmp_path: Path) -> None:
    """Beyond its last row, as heartbeats do; also after it has gone on."""
    [process], run = long_run(world, tmp_path)
    until(lambda: (run / "heartbeat.json").exists() and beat(run)["step"] > 0, [process])
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = max(beat(run)["step"], *steps(run))
    [before] = attempts(run)
    assert (before.step, before.reached) == (0, reached)
    Pulse(run, 0, 100_000).beat(0)
    [before] = attempts(run)
    assert before.reached == reached
    assert logged_rows(run)[0]["event"] == "start"
