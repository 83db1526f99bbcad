"""Every rule: a log that it warns of, the words, and logs like it that it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from stack.report.alerts import RULES, Watch, alerts
from stack.report.history import History

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
        fine=[line(9, 2, 2.2, n=12), spiked(line(9, 2, n=12), 50)],
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
