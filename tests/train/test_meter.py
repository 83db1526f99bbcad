"""Rates of training, the slowest rank, and memory."""

from __future__ import annotations

import sys
import time
from typing import Any

import psutil
import pytest
import torch

from stack.parallel.collectives import ALONE, Ranks, WaitClock
from stack.train import meter as module
from stack.train.meter import Meter, memory, slowest

SLOWEST = {
    # by rank, seconds of its own and of the iteration: the slowest rank, and its lag
    "alone": ([(0.5, 1.0)], None),
    "all alike": ([(0.5, 1.0)] * 4, (0, 0.0)),
    "the last of two": ([(0.25, 1.0), (0.75, 1.0)], (1, 0.5)),
    "the first of two": ([(0.75, 1.0), (0.25, 1.0)], (0, 0.5)),
    "one of four": ([(0.5, 2.0), (0.5, 2.0), (1.5, 2.0), (0.5, 2.0)], (2, 0.5)),
    "more than half are slow": ([(0.25, 1.0), (0.75, 1.0), (0.75, 1.0)], (1, 0.0)),
    "one that is quick holds nobody up": ([(0.5, 1.0), (0.5, 1.0), (0.1, 1.0)], (0, 0.0)),
    "a share of the longest iteration": ([(0.5, 1.0), (1.5, 4.0), (0.5, 2.0)], (1, 0.25)),
}


@pytest.mark.parametrize("name", SLOWEST)
def test_the_slowest_rank(name: str) -> None:
    times, expected = SLOWEST[name]
    if expected is None:
        assert slowest(times) == {}
        return
    who, lag = expected
    assert slowest(times) == {"ranks/slowest": who, "ranks/lag": pytest.approx(lag)}


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def passes(self, seconds: float, result: Any = None) -> Any:
        self.now += seconds
        return result


class Slow:
    """A source that takes 2 s."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def take(self) -> list[str]:
        return self.clock.passes(2, ["batch"])


def test_rates_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = Meter(8)
    for _ in range(2):
        meter.begin(exact=False)
        assert meter.fetch(Slow(clock)) == ["batch"]  # type: ignore[arg-type]
        clock.passes(3)
        meter.end()
    meter.saving += clock.passes(6, 6)
    assert meter.read() == {"images_per_second": 1.0, "data_wait": 0.25, "save_wait": 0.375}
    meter.begin(exact=False)
    clock.passes(4)
    meter.end()
    assert meter.read() == {"images_per_second": 2.0, "data_wait": 0.0, "save_wait": 0.0}


def test_what_a_rank_waits_in_collectives_is_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an iteration of 10 s it waits 6; what came before the iteration does not count."""
    clock, wait = Clock(monkeypatch), WaitClock()
    told: list[Any] = []

    class First(Ranks):
        def gather(self, value: Any) -> list[Any]:
            told.append(value)
            return [value, (9.0, 10.0)]

    meter = Meter(8, First(0, 2, clock=wait))
    with wait():
        clock.passes(50)
    meter.begin(exact=True)
    assert wait.exact
    for _ in range(2):
        clock.passes(2)
        with wait():
            clock.passes(3)
    meter.end()
    row = meter.read()
    assert told == [(4.0, 10.0)]
    assert (row["ranks/slowest"], row["ranks/lag"]) == (1, 0.5)


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_memory_of_this_process(platform: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        ru_maxrss = 3_000_000_000 // unit

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(module.resource, "getrusage", lambda who: Usage)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory(ALONE) == {"memory/host_gb": pytest.approx(3.0)}


def test_memory_is_what_the_system_says() -> None:
    """The peak is at least what is held now, and not another unit."""
    held = psutil.Process().memory_info().rss / 1e9
    assert 0.9 * held < memory(ALONE)["memory/host_gb"] < 100 * held


def test_memory_is_that_of_the_fullest_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each kind, which may be on different ranks."""

    class Peers(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [value, {"memory/host_gb": 1e6, "memory/gpu_gb": 0.5}]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2_000_000_000)
    assert memory(Peers(0, 2)) == {"memory/host_gb": 1e6, "memory/gpu_gb": 2.0}
