"""Every rule: a log that it warns of, the words, and logs like it that it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stack.report.alerts import RULES, Watch, alerts
from stack.report.history import History, read_history

RANDOM = np.random.default_rng(0)
NOISE = 0.01 * RANDOM.standard_normal(100)


def line(*points: float, n: int = 100) -> np.ndarray:
    """A broken line over n rows, with a little noise."""
    corners = np.linspace(0, n - 1, len(points))
    return np.interp(np.arange(n), corners, points) + NOISE[:n]


def spiked(values: np.ndarray, spike: float) -> np.ndarray:
    """The same with one wild last value."""
    return np.append(values[:-1], spike)


@dataclass(frozen=True)
class Case:
    """Logs of one figure: bad ones, fine ones, and what the words name of the first bad one."""

    figure: str
    sign: str
    bad: Sequence[np.ndarray]
    fine: Sequence[np.ndarray]
    words: str


CASES = (
    Case(
        "similarity/fake",
        "mode loss",
        bad=[line(0.4, 0.1, 0.4), line(0.05, 0.05, 0.6)],
        # Alike at the start, as a teacher's single step is; and one batch that is.
        fine=[
            line(0.6, 0.2, 0.1),
            line(0.2, 0.2),
            spiked(line(0.2, 0.2), 0.9),
            line(0.1, 0.9, n=30),
        ],
        words="grown alike",
    ),
    Case(
        "quick/in_batch_similarity",
        "mode loss",
        bad=[line(0.5, 0.42, 0.56, n=10)],
        fine=[line(0.5, 0.42, n=10), line(0.4, 0.5, n=4)],
        words="in-batch similarity has risen from 0.4",
    ),
    Case(
        "quick/mode_entropy",
        "mode loss",
        bad=[line(2.0, 2.3, 1.5, n=12)],
        fine=[line(1.5, 2.3, n=12), line(2.3, 2.25, n=12)],
        words="entropy of modes has fallen from 2.",
    ),
    Case(
        "quick/frechet_distance",
        "quality falls",
        bad=[line(9, 2, 6, n=12)],
        fine=[
            line(9, 2, 2.2, n=12),
            spiked(line(9, 2, n=12), 50),
            line(9, 0.1, 0.1, 0.1, 0.2, n=20),  # Twice as much, after a fall by ninety times that.
        ],
        words="quick Frechet distance was 2.",
    ),
    Case(
        "r/clipped",
        "h at its clips",
        bad=[line(0.1, 0.7, 0.7, 0.7)],
        fine=[line(0.7, 0.1, 0.1, 0.1), line(0.45, 0.45), spiked(line(0.3, 0.3), 1)],
        words="70% of the ratios",
    ),
    Case(
        "discriminator/accuracy",
        "discriminator saturated",
        bad=[np.minimum(line(0.6, 1, 1, 1) + 0.02, 1)],
        fine=[line(0.6, 0.9), line(0.9, 0.9), spiked(line(0.9, 0.9), 1.0)],
        words="right 100.0% of the time",
    ),
    Case(
        "latent/drift",
        "colours drift",
        bad=[line(0.2, 1.5, 1.5, 1.5)],
        fine=[line(1.5, 0.2, 0.2), line(0.5, 0.5), spiked(line(0.5, 0.5), 9)],
        words="1.5 standard deviations",
    ),
)


def history(figure: str, values: np.ndarray) -> History:
    return History([{"step": 10 * i, figure: float(v)} for i, v in enumerate(values, 1)])


def test_every_rule_has_its_case() -> None:
    assert [(rule.figure, rule.name) for rule in RULES] == [(c.figure, c.sign) for c in CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.figure)
def test_a_rule_warns_of_what_is_bad_and_of_nothing_else(case: Case) -> None:
    for values in case.bad:
        [(sign, words)] = alerts(history(case.figure, values))
        assert sign == case.sign
    [(_, words)] = alerts(history(case.figure, case.bad[0]))
    assert case.words in words
    for values in case.fine:
        assert alerts(history(case.figure, values)) == []


TOYS = Path(__file__).parent / "toy_logs"
"""What 2-D runs logged: stack figures --toy iterations=1200, a few of the figures, rounded."""


def told_of(rows: Sequence[Mapping[str, float]]) -> list[tuple[int, str]]:
    watch = Watch()
    return [(row["step"], sign) for row in rows for sign, _ in watch.look(row["step"], row)]


@pytest.mark.parametrize(
    ("toy", "signs"),
    [
        # Both spread out while the student warms up, which half doubles their distance, and end
        # at a quarter of it.
        ("toy_fkl", []),
        ("toy_fkl_plain", []),
        # It loses modes while it warms up, and has lost them when that is over.
        ("toy_rkl", [(700, "mode loss"), (720, "quality falls")]),
    ],
)
def test_toys_are_warned_of_modes_they_lose(toy: str, signs: list[tuple[int, str]]) -> None:
    rows = read_history(TOYS / f"{toy}.jsonl").rows
    assert told_of(rows) == signs


def test_it_is_the_warm_up_that_is_left_out() -> None:
    rows = read_history(TOYS / "toy_fkl_plain.jsonl").rows
    without = [{k: v for k, v in row.items() if k != "lr/student"} for row in rows]
    assert [sign for _, sign in told_of(without)] == ["mode loss", "quality falls"]


@pytest.mark.parametrize(
    ("spread", "warned"),
    [
        ([0.1] * 12, True),
        ([0.0] * 12, True),  # Reverse KL, whose h is always 1.
        ([0.0] * 8 + [0.1] * 4, True),
        ([0.0] * 9 + [0.1] * 3, False),  # One window since h began to differ; two it takes.
    ],
)
def test_the_ratios_warm_up_is_waited_for(spread: Sequence[float], warned: bool) -> None:
    values = [1.0] * 6 + [2.0] * 6
    rows = [
        {"step": i, "quick/frechet_distance": value, "h/variance": spread[i]}
        for i, value in enumerate(values)
    ]
    assert bool(alerts(History(rows))) == warned


def test_one_bad_window_is_not_enough() -> None:
    rise = np.array([2.0, 2, 2, 2, 2, 4, 4])
    assert alerts(history("quick/frechet_distance", rise)) == []
    assert alerts(history("quick/frechet_distance", np.append(rise, 2.0))) != []  # Median is 4.
    assert alerts(history("quick/frechet_distance", np.append(rise, [2.0, 2]))) == []


def test_a_log_without_these_figures_is_silent() -> None:
    assert alerts(History([{"step": 1, "loss/fake": 1.0}])) == []


def told(figure: str, values: np.ndarray, row: Callable[[float], dict]) -> list[int]:
    watch = Watch()
    return [i for i, value in enumerate(values) if watch.look(i, row(float(value)))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.figure)
def test_the_log_is_told_once_when_a_sign_begins(case: Case) -> None:
    steps = told(case.figure, case.bad[0], lambda value: {case.figure: value, "loss/gap": 1.0})
    assert len(steps) == 1
    assert steps[0] > 1


def test_a_sign_that_ends_and_comes_back_is_told_again() -> None:
    high, low = np.full(30, 0.9), np.full(30, 0.1)
    values = np.concatenate([high, low, high])
    steps = told("r/clipped", values, lambda value: {"r/clipped": value})
    assert steps == [19, 79]


def test_rows_without_a_figure_neither_end_a_sign_nor_begin_it() -> None:
    watch = Watch()
    for i in range(40):
        new = watch.look(2 * i, {"r/clipped": 0.9}) + watch.look(2 * i + 1, {"loss/gap": 1.0})
        assert len(new) == (i == 19)
    assert watch.look(99, {"r/clipped": float("nan")}) == []


def resumed(rows: Sequence[Mapping[str, float]], every: int) -> list[tuple[int, str]]:
    """What is told by starts of which each ends after so many rows, and three more that are lost
    with it and look worse than they are."""
    log: list[Mapping[str, Any]] = []
    found: list[tuple[int, str]] = []
    for begin in range(0, len(rows), every):
        watch, step = Watch(), int(rows[begin - 1]["step"]) if begin else 0
        watch.recall(log, step)
        log += [{"event": "resume", "step": step}] if log else []
        part, lost = rows[begin : begin + every], rows[begin + every : begin + every + 3]
        found += [(row["step"], sign) for row in part for sign, _ in watch.look(row["step"], row)]
        log += [*part, *({**row, "similarity/fake": 0.0, "r/clipped": 1.0} for row in lost)]
    return found


SATURATED = [
    {
        "step": 10 * i,
        "discriminator/accuracy": 0.99,
        "similarity/fake": 0.1 if i < 30 else 0.5,
        **({"quick/mode_entropy": 2.0 if i < 70 else 1.0} if i % 10 == 0 else {}),
    }
    for i in range(1, 121)
]


@pytest.mark.parametrize("every", [1, 7, 30, 60])
def test_a_run_in_pieces_is_told_what_a_whole_one_is(every: int) -> None:
    expected = [(200, "discriminator saturated"), (410, "mode loss"), (900, "mode loss")]
    assert told_of(SATURATED) == expected
    assert resumed(SATURATED, every) == expected
    for toy in ("toy_fkl", "toy_fkl_plain", "toy_rkl"):
        rows = read_history(TOYS / f"{toy}.jsonl").rows
        assert resumed(rows, every) == told_of(rows)


def test_what_was_logged_after_the_state_a_run_goes_on_from_is_forgotten() -> None:
    log = [{"step": i, "r/clipped": 0.9} for i in range(1, 41)]
    signs = []
    for step in (0, 15, 30):
        watch = Watch()
        watch.recall(log, step)
        rows = range(step + 1, 41)
        signs.append([i for i in rows if watch.look(i, {"r/clipped": 0.9})])
    assert signs == [[20], [20], []]  # It was on at iteration 30, and told.
