"""A rank that gives up when nothing is done: when, on a clock that only the test moves; and how, in
a process that hangs."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from stack.train import pulse
from stack.train.pulse import Pulse
from tests.forked import ROOT
from tests.train.clock import Clock


class GaveUpError(Exception):
    """What a watchdog does of which nobody must die."""


class Watch:
    """A pulse whose watchdog sleeps on the test's clock and is run from here.

    Args:
        events: seconds after the pulse's begin, in order, and what happens then.

    Attributes:
        abrupt: when the process would end that cannot run Python.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
        limit: float,
        events: Sequence[tuple[float, Callable[[Pulse], object]]],
    ) -> None:
        self.clock, self.abrupt, self.threads = Clock(monkeypatch), math.inf, 0
        self.begun, self.events = self.clock.now, list(events)
        monkeypatch.setattr(pulse, "threading", SimpleNamespace(Event=Event, Thread=self._thread))
        timer = {"dump_traceback_later": self._later, "cancel_dump_traceback_later": self._cancel}
        monkeypatch.setattr(pulse, "faulthandler", SimpleNamespace(**timer))
        monkeypatch.setattr(Pulse, "_give_up", self._gave_up)
        self.pulse = Pulse(folder, limit, 9)
        monkeypatch.setattr(self.pulse._closed, "wait", self._wait)

    def run(self) -> float:
        """Seconds from the begin to the watchdog's return."""
        self.pulse._watch()
        return self.clock.now - self.begun

    def _wait(self, seconds: float) -> bool:
        end = self.clock.now + seconds
        while self.events and self.begun + self.events[0][0] <= end:
            after, happens = self.events.pop(0)
            self.clock.now = self.begun + after
            assert self.clock.now < self.abrupt
            happens(self.pulse)
            if self.pulse._closed.is_set():
                return True
        self.clock.now = end
        return False

    def _thread(self, **_options: Any) -> SimpleNamespace:
        self.threads += 1
        return SimpleNamespace(start=lambda: None)

    def _later(self, seconds: float, **_options: Any) -> None:
        self.abrupt = self.clock.now + seconds

    def _cancel(self) -> None:
        self.abrupt = math.inf

    def _gave_up(self, seconds: float) -> None:
        assert self.clock.now < self.abrupt
        raise GaveUpError(seconds)


def at(step: int) -> Callable[[Pulse], object]:
    return lambda alive: alive.beat(step)


def pause() -> tuple[Callable[[Pulse], object], Callable[[Pulse], object]]:
    """The begin and the end of one."""
    with ExitStack() as stack:
        return lambda alive: stack.enter_context(alive.paused()), lambda _: stack.close()


close = Pulse.close
LIVELY: dict[str, list[tuple[float, Callable[[Pulse], object]]]] = {
    "every iteration is in time": [*((0.9 * n, at(n)) for n in range(1, 40)), (36, close)],
    "what comes before the first takes its time": [(9.9, at(1)), (10, close)],
    "a save takes its time": [
        *zip((0.5, 10.4), pause(), strict=True),
        *((11.3, at(2)), (12, close)),
    ],
    "ended in time": [(0.5, at(1)), (1.4, close)],
}


@pytest.mark.parametrize("name", LIVELY)
def test_nobody_gives_up(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, tmp_path, 1, LIVELY[name])
    assert watch.run() == pytest.approx(LIVELY[name][-1][0])
    assert (watch.threads, watch.abrupt) == (1, math.inf)


DEAD: dict[str, tuple[list[tuple[float, Callable[[Pulse], object]]], float, float]] = {
    # what happens; from when on nothing does, and what the last may take
    "before the first iteration": ([], 0, 10),
    "an iteration": ([(5, at(0)), (5.7, at(1))], 5.7, 1),
    "a save": ([(5, at(0)), (5.5, pause()[0])], 5.5, 10),
    "an iteration after a save": ([(0.5, at(0)), *zip((1, 9), pause(), strict=True)], 9, 1),
}


@pytest.mark.parametrize("name", DEAD)
def test_it_gives_up_soon_after_the_limit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times the limit for what is no iteration: saves and evaluations, and what comes before
    the first one. A process that cannot run Python has a fixed time more."""
    events, since, seconds = DEAD[name]
    watch = Watch(monkeypatch, tmp_path, 1, events)
    with pytest.raises(GaveUpError, match=f"^{seconds}$"):
        watch.run()
    over = watch.begun + since + seconds
    assert over < watch.clock.now <= over + 0.25 + 1e-6
    assert watch.abrupt == pytest.approx(over + pulse._LATER)


def test_no_watchdog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of another's timers is taken away."""
    watch = Watch(monkeypatch, tmp_path, 0, [])
    watch.abrupt = 7.0
    watch.pulse.beat(1)
    watch.pulse.close()
    assert (watch.threads, watch.abrupt) == (0, 7.0)


_SCRIPT = """
import ctypes, sys, threading, time
from stack.train import pulse
pulse._PATIENCE, pulse._LATER = 1000, float(sys.argv[2])
alive = pulse.Pulse(pulse.Path(sys.argv[1]), 0.5, 9)
def an_iteration_that_hangs():
    alive.beat(3)
    {hang}
{more}
an_iteration_that_hangs()
"""

HANGS = {
    # an iteration, what happens besides, exit status
    "asleep": ("time.sleep(600)", "", 75),
    "waits for a lock": ("lock = threading.Lock(); lock.acquire(); lock.acquire()", "", 75),
    "spins": ("while True: pass", "", 75),
    "spins, and its signals are handled": (
        "while True: pass",
        "import signal; signal.signal(signal.SIGTERM, lambda *_: None)",
        75,
    ),
    "in a library that keeps Python from running": ("ctypes.PyDLL(None).sleep(600)", "", 1),
}


@pytest.mark.parametrize("name", HANGS)
def test_an_iteration_that_hangs(name: str, tmp_path: Path) -> None:
    """The watchdog's word is the first wherever Python runs: its other timer is an hour's then."""
    hang, more, code = HANGS[name]
    script = _SCRIPT.format(hang=hang, more=more)
    command = [sys.executable, "-c", script, str(tmp_path), "3600" if code == 75 else "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "in an_iteration_that_hangs" in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    expected = f"{tmp_path}: iteration 3: no progress for 0.5 s (parallel.watchdog); the stacks"
    assert len(told) == (code == 75)
    assert all(line.startswith(f"error: {expected}") for line in told)
