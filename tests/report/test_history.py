"""The log as curves: resumed, torn and gappy logs read as the run they tell of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stack.report.history import History, read_history
from stack.util.errors import UserError


def rows(*steps: int, loss: float = 1.0) -> list[dict[str, Any]]:
    return [{"step": step, "loss": loss} for step in steps]


def resume(step: int) -> dict[str, Any]:
    return {"event": "resume", "step": step, "time": 1.0}


CASES: dict[str, tuple[list[dict[str, Any]], list[int], list[int]]] = {
    "one go": (rows(10, 20, 30), [10, 20, 30], []),
    "resumed": ([*rows(10, 20, 30), resume(20), *rows(30, 40)], [10, 20, 30, 40], [20]),
    "resumed at the last row": ([*rows(10, 20), resume(20), *rows(30)], [10, 20, 30], [20]),
    "resumed between rows": ([*rows(10, 20), resume(15), *rows(20, 30)], [10, 20, 30], [15]),
    "from the start": ([*rows(10, 20), resume(0), *rows(10)], [10], [0]),
    "twice": (
        [*rows(10, 20), resume(10), *rows(20, 30), resume(20), *rows(30)],
        [10, 20, 30],
        [10, 20],
    ),
    "two rows of one iteration": ([*rows(10, 20), *rows(20, 30)], [10, 20, 30], []),
    "without a word": ([*rows(10, 20, 30), *rows(20, 30)], [10, 20, 30], [19]),
    "resumed before anything was logged": ([resume(5), *rows(10)], [10], []),
    "stopped": ([*rows(10), {"event": "stopped by SIGTERM", "step": 12}, *rows(20)], [10, 20], []),
}


@pytest.mark.parametrize("name", CASES)
def test_abandoned_rows_are_dropped(name: str, tmp_path: Path) -> None:
    logged, steps, restarts = CASES[name]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in logged))
    history = read_history(path)
    assert [row["step"] for row in history.rows] == steps
    assert history.restarts == restarts
    assert history.torn == 0


def test_a_mean_over_the_end_is_of_the_rows_that_hold_the_figure() -> None:
    found = History([{"step": i, "loss": float(i)} for i in range(1, 9)])
    found.rows.extend({"step": i, "other": 0.0} for i in range(9, 99))
    assert found.late("loss", 0.25) == 7.5
    assert found.late("loss", 1) == 4.5
    assert found.late("loss", 0.01) == 8  # One row at least.
    assert found.late("grad", 0.5) is None


def test_two_rows_of_one_iteration_are_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logged = [*rows(10, 20), {"step": 20, "quick/frechet_distance": 0.5}]
    path.write_text("".join(json.dumps(row) + "\n" for row in logged))
    history = read_history(path)
    assert history.rows[-1] == {"step": 20, "loss": 1.0, "quick/frechet_distance": 0.5}
    assert history.restarts == []


def test_the_later_attempt_is_the_one_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logged = [*rows(10, 20, loss=1.0), resume(10), *rows(20, loss=2.0)]
    path.write_text("\n".join(map(json.dumps, logged)))
    assert read_history(path).curve("loss").values.tolist() == [1, 2]


def test_torn_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "a": 1}\n{"step": 2, "a"{"step": 3, "a": 3}\n{"step": 4, "a": 5}\n{"'
    )
    history = read_history(path)
    assert history.torn == 2
    assert history.curve("a").steps.tolist() == [1, 4]
    assert history.last("a") == 5


def test_figures_that_are_missing_or_not_finite_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "a": 1, "b": 10}\n{"step": 2, "a": NaN, "b": 20}\n'
        '{"step": 3, "b": 30}\n{"step": 4, "a": 4, "b": Infinity}\n'
    )
    history = read_history(path)
    assert history.curve("a").steps.tolist() == [1, 4]
    assert history.curve("b").values.tolist() == [10, 20, 30]
    assert [curve.values.tolist() for curve in history.curves("a", "b")] == [[1], [10]]
    assert not history.curve("absent")
    assert history.last("absent") is None
    assert history.keys() == ["step", "a", "b"]


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no such file"), ("", "nothing"), ("{", "1 l")]
)
def test_a_run_without_a_log_is_the_users_mistake(
    text: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_history(path)
