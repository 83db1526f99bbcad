"""Signs of life, and ranks that give up when there are none."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from stack.report.journal import attempts
from stack.train import pulse
from stack.train.pulse import Pulse
from tests.forked import ROOT
from tests.pipeline import World, logged_rows, recipe_fields, start, write_recipe


class Clock:
    """Stands still unless told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(pulse.time, "monotonic", lambda: self.now)


def beat(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "heartbeat.json").read_text())


def test_what_a_heartbeat_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of a step over this start, and nothing of the place that others have."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    clock, before = Clock(monkeypatch), time.time()
    alive = Pulse(tmp_path, 0, 50)
    clock.now = 110
    alive.beat(20)
    place = {"host": socket.gethostname(), "pid": os.getpid(), "job": "7"}
    found = beat(tmp_path)
    assert before <= found.pop("wall") <= time.time()
    assert found == {"step": 20, "total_steps": 50, "seconds_per_step": None, **place}
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


_BEGIN = "import ctypes, sys, threading, time; from stack.train import pulse\n"
_BEGIN += "pulse._LATER = {later}; alive = pulse.Pulse(pulse.Path({folder!r}), {limit}, 9)\n"
_BEGIN += "alive.beat(3)\ndef an_iteration_that_hangs():\n    {hang}\n"
_BEGIN += "{more}\nan_iteration_that_hangs()\nalive.close(); print('done')"

HANGS = {
    # an iteration, what happens besides, exit status
    "asleep": ("time.sleep(60)", "", 75),
    "waits for a lock": ("lock = threading.Lock(); lock.acquire(); lock.acquire()", "", 75),
    "spins": ("while True: pass", "", 75),
    "spins, and its signals are handled": (
        "while True: pass",
        "import signal; signal.signal(signal.SIGTERM, lambda *_: None)",
        75,
    ),
    "in a library that keeps Python from running": ("ctypes.PyDLL(None).sleep(60)", "", 1),
}


@pytest.mark.parametrize("paused", ["with alive.paused(): time.sleep(60)", "time.sleep(60)"])
def test_what_is_no_iteration_has_ten_times_as_long(paused: str, tmp_path: Path) -> None:
    """Saves and evaluations, and what comes before the first iteration."""
    begun = time.monotonic()
    first = "alive.close(); alive = pulse.Pulse(alive.folder, 0.2, 9)"
    first += "; alive.beat(3)" if "paused" in paused else ""
    done = run_script(tmp_path, paused, more=first)
    assert done.returncode == 75
    assert time.monotonic() - begun >= 2
    assert "no progress for 2 s (parallel.watchdog)" in done.stderr


def run_script(folder: Path, hang: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    values = {"limit": 1, "later": 1, "more": "", **settings}
    script = _BEGIN.format(folder=str(folder), hang=hang, **values)
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=50
    )


@pytest.mark.parametrize("name", HANGS)
def test_an_iteration_that_hangs(name: str, tmp_path: Path) -> None:
    hang, more, code = HANGS[name]
    done = run_script(tmp_path, hang, more=more)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "in an_iteration_that_hangs" in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    expected = (
        f"error: {tmp_path}: iteration 3: no progress for 1 s (parallel.watchdog); the stacks"
    )
    assert len(told) == (code == 75)
    assert all(line.startswith(expected) for line in told)


SLOW = "for step in range(4, 10): time.sleep(0.4); alive.beat(step)"
LIVELY = {
    "every iteration is in time": (SLOW, {}),
    "a save takes its time": ("with alive.paused(): time.sleep(2.5)", {}),
    "no watchdog": ("time.sleep(1.5)", {"limit": 0}),
    "ended in time": ("time.sleep(0.2); alive.close(); time.sleep(2.5)", {"later": 0.5}),
}


@pytest.mark.parametrize("name", LIVELY)
def test_nobody_gives_up(name: str, tmp_path: Path) -> None:
    hang, settings = LIVELY[name]
    done = run_script(tmp_path, hang, **settings)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


_SLOW_SAVES = """
import sys, time
import stack.checkpoint.saver as saver
from stack.cli import main
commit = saver.save
def slow(*args, **kwargs):
    time.sleep(8)
    return commit(*args, **kwargs)
saver.save = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_last_save_may_take_longer_than_an_iteration(world: World, tmp_path: Path) -> None:
    """Written in the background, it is waited for when no iteration is left."""
    fields = recipe_fields(world, iterations=2, parallel={"watchdog": 6})
    fields["checkpoint"] = {"every": 2, "background": True}
    command = [sys.executable, "-c", _SLOW_SAVES, "distill", str(write_recipe(tmp_path, fields))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-0000002").is_dir()


def long_run(world: World, folder: Path, **parallel: Any) -> tuple[subprocess.Popen[str], Path]:
    """Processes that train for hours, once they have logged a step."""
    fields = recipe_fields(
        world,
        iterations=100_000,
        checkpoint={"every": 100_000},
        parallel={"timeout": 300, "watchdog": 5, **parallel},
    )
    process, run = start(["distill", str(write_recipe(folder, fields))]), folder / "run"
    until(lambda: (run / "metrics.jsonl").exists() and steps(run), process)
    return process, run


def steps(run: Path) -> list[int]:
    """Of the rows that are wholly there."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row["step"] for row in rows if "event" not in row]


def until(true: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_stands_still_makes_the_other_tell_where_it_was(
    stopped: int, world: World, tmp_path: Path
) -> None:
    process, run = long_run(world, tmp_path, backend="ddp", processes=2)
    ranks = psutil.Process(process.pid).children()
    ranks[stopped].send_signal(signal.SIGSTOP)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 75, told
    [line] = [line for line in told.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: {run}: iteration ")
    assert "no progress for 5 s (parallel.watchdog)" in line
    assert "collectives.py" in told
    assert 'File "' in told
    assert "Current thread" in told


@pytest.mark.slow
def test_a_killed_run_tells_what_it_lost(world: World, tmp_path: Path) -> None:
    """Beyond its last row, as heartbeats do; also after it has gone on."""
    process, run = long_run(world, tmp_path, backend="none")
    until(lambda: (run / "heartbeat.json").exists() and beat(run)["step"] > 0, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = max(beat(run)["step"], *steps(run))
    [before] = attempts(run)
    assert (before.step, before.reached) == (0, reached)
    Pulse(run, 0, 100_000).beat(0)
    [before] = attempts(run)
    assert before.reached == reached
    assert logged_rows(run)[0]["event"] == "start"
