"""What may stop a run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from stack.train.guard import DamageBudget, SkipBudget, StopFlag, stop_on_signals
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


@pytest.mark.parametrize(("share", "allowed"), [(0.0, 0), (0.01, 1), (0.0199, 1), (0.5, 50)])
def test_damage_up_to_a_share_of_an_epoch_is_borne(share: float, allowed: int) -> None:
    budget = DamageBudget(share, per_epoch=100, batch=10)
    for total in range(allowed + 1):
        budget.count(total, 3, [f"line {total}"] if total else [])
    with pytest.raises(UserError) as caught:
        budget.count(allowed + 1, 4, [f"line {allowed + 1}", "line of another rank"])
    assert str(caught.value) == (
        f"data.bad_samples: {allowed + 1} damaged of the 100 samples of epoch 0, more than "
        f"{share:.2%} (first: line 1); run python -m data_prep verify"
    )


@pytest.mark.parametrize("first", [0, 7])
def test_each_epoch_has_its_own_budget(first: int) -> None:
    """Of 100 samples 40 may be damaged, whatever an earlier epoch had."""
    budget, total = DamageBudget(0.4, per_epoch=100, batch=10), 0
    for iteration in range(first, 40):
        total += 4
        budget.count(total, iteration)
    for iteration in range(40, 48):
        total += 5
        budget.count(total, iteration)
    with pytest.raises(UserError, match=r"45 damaged of the 100 samples of epoch 4, more than 40"):
        budget.count(total + 5, 48)


def test_the_first_damage_named_is_that_of_the_epoch() -> None:
    budget = DamageBudget(0.02, per_epoch=100, batch=10)
    budget.count(1, 9, ["of epoch 0"])
    budget.count(1, 10)
    budget.count(2, 11, ["first of epoch 1"])
    with pytest.raises(UserError, match=r"\(first: first of epoch 1\)"):
        budget.count(4, 12, ["second", "third"])


@pytest.mark.parametrize("stop", range(7, 17))
def test_a_budget_that_was_saved_goes_on_as_one_that_was_not(stop: int) -> None:
    """Two damaged samples each iteration: those of iteration 17, in epoch 1, are too many."""
    budget = DamageBudget(0.15, per_epoch=100, batch=10)
    for iteration in range(7, 17):
        if iteration == stop:
            state = json.loads(json.dumps(budget.state_dict()))
            budget = DamageBudget(0.15, per_epoch=100, batch=10, **state)
        budget.count(2 * (iteration - 6), iteration, [f"line {iteration}"])
    with pytest.raises(UserError, match=r"16 damaged .* of epoch 1, .*\(first: line 10\)"):
        budget.count(22, 17, ["line 17"])


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
