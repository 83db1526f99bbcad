"""What a run tells: the figures of a step, and the files they go to."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import pytest
import torch

from stack.train.metrics import MetricsLog, summarize

BOUNDS = (log(0.1), log(20.0))


def test_scalars_go_through() -> None:
    figures = {"loss/fake": torch.tensor(0.5), "grad/fake": torch.tensor(2.0)}
    assert summarize(figures, log_r_bounds=BOUNDS) == {"loss/fake": 0.5, "grad/fake": 2.0}


def test_ratios_and_weights() -> None:
    r = torch.tensor([0.1, 0.5, 1.0, 2.0, 20.0])
    h = torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0])
    figures = {"log_r": r.log(), "h": h, "gap": torch.arange(5.0), "t": torch.arange(5)}
    row = summarize(figures, log_r_bounds=BOUNDS)
    expected = {
        "r/p10": 0.26,
        "r/p50": 1.0,
        "r/p90": 12.8,
        "r/mean": 4.72,
        "r/clipped": 0.4,
        "h/p10": 0.4,
        "h/p50": 1.0,
        "h/p90": 1.6,
        "h/variance": 0.4,
        "gap/mean": 2.0,
    }
    assert row == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_are_there_at_once(tmp_path: Path) -> None:
    metrics = MetricsLog(tmp_path, seconds=100.0)
    assert not metrics.continued
    metrics.row(3, {"loss/fake": 0.25})
    [row] = rows_of(tmp_path)
    assert row.pop("time") >= 100
    assert row == {"step": 3, "loss/fake": 0.25}
    metrics.close()
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_second_start_goes_on_in_the_same_file(tmp_path: Path) -> None:
    first = MetricsLog(tmp_path)
    first.row(1, {})
    first.close()
    second = MetricsLog(tmp_path, seconds=5.0)
    assert second.continued
    second.event("resume", 1)
    second.close()
    assert [row.get("event") for row in rows_of(tmp_path)] == [None, "resume"]


def test_a_second_start_knows_what_the_first_one_saw(tmp_path: Path) -> None:
    """Two starts of ten rows each, the second of which goes on from the eighth; and one more."""
    told = []
    for first, last in ((1, 10), (9, 20), (21, 30)):
        metrics = MetricsLog(tmp_path, step=first - 1)
        metrics.event("resume" if metrics.continued else "start", first - 1)
        for step in range(first, last + 1):
            metrics.row(step, {"r/clipped": 0.9, "levels/h": [[1, 2, 3]]})
        metrics.close()
        told.append([row["step"] for row in rows_of(tmp_path) if row.get("event") == "alert"])
    assert told == [[], [20], [20]]


def test_a_silent_log_writes_nothing(tmp_path: Path) -> None:
    metrics = MetricsLog(tmp_path, silent=True)
    metrics.row(1, {"loss/fake": 1.0})
    metrics.event("resume", 1)
    metrics.close()
    assert not list(tmp_path.iterdir())
    assert not metrics.continued
