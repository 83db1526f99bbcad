"""What may stop a run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from stack.train.guard import SkipBudget, StopFlag, stop_on_signals
from stack.util.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def test_skips_in_a_row_are_too_many() -> None:
    budget = SkipBudget(3)
    for iteration in range(2):
        budget.count(False, iteration, Path("runs/x"))
    with pytest.raises(UserError, match=r"^runs/x: iteration 2: 3 iterations in a row .*lr"):
        budget.count(False, 2, Path("runs/x"))


def test_skips_are_counted_and_a_step_ends_a_row() -> None:
    budget = SkipBudget(3, skipped=10)
    for iteration, stepped in enumerate([False, False, True] * 5):
        budget.count(stepped, iteration, Path("runs/x"))
    assert budget.skipped == 20


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_sets_the_flag_and_the_first_one_names_it(number: signal.Signals) -> None:
    with stop_on_signals() as flag:
        assert flag.reason is None
        signal.raise_signal(number)
        assert flag.reason == number.name
        for other in SIGNALS:
            signal.raise_signal(other)
        assert flag.reason == number.name


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_on_signals():
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_flag_is_down_at_first() -> None:
    assert StopFlag().reason is None
