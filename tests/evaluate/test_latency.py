"""The stopwatch counts what it says it counts; how long anything takes is not asserted."""

from __future__ import annotations

from itertools import count

import pytest

from stack.evaluate import latency


@pytest.mark.parametrize(
    ("durations", "batch", "rate"),
    [([2.0, 2.0, 2.0], 8, 4.0), ([1.0, 100.0, 1.0], 5, 5.0), ([4.0], 1, 0.25), ([1, 3], 4, 2.0)],
)
def test_rate_is_the_batch_over_the_median(
    monkeypatch: pytest.MonkeyPatch, durations: list[float], batch: int, rate: float
) -> None:
    now = [0.0]
    calls = count()
    warmup = 2

    def generate() -> None:
        call = next(calls)
        now[0] += 1000.0 if call < warmup else durations[call - warmup]

    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    speed = latency.measure(generate, batch, repeats=len(durations), warmup=warmup)
    assert next(calls) == warmup + len(durations)
    assert speed.images_per_second == pytest.approx(rate)
    assert list(speed.seconds) == durations
    assert speed.batch == batch
    assert speed.device == latency.device_name("cpu")


def test_no_repeat_begins_once_enough_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    now = count(step=3.0)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(now))
    speed = latency.measure(lambda: None, 6, repeats=5, enough=6.0)
    assert speed.seconds == (3.0, 3.0)
    assert latency.measure(lambda: None, 6, repeats=5, enough=0.1).images_per_second == 2.0


def test_a_device_has_a_name() -> None:
    assert latency.device_name("cpu").endswith("threads")
    assert len(latency.device_name("cpu")) > len("1 threads") + 2
