"""What may stop a run: signals, too many skipped iterations, too many damaged samples."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from stack.util.errors import UserError


class StopFlag:
    """Set by a signal, read at an iteration's boundary."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def set(self, number: int, frame: FrameType | None) -> None:
        """Signal handler; a second signal changes nothing."""
        self.reason = self.reason or signal.Signals(number).name


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """SIGINT, SIGTERM and SIGUSR1 only set a flag inside the context."""
    flag = StopFlag()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, flag.set) for number in numbers}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class SkipBudget:
    """Counts iterations skipped because something was not finite; some in a row are too many."""

    def __init__(self, in_a_row: int = 20, *, skipped: int = 0) -> None:
        self.limit, self.skipped, self.row = in_a_row, skipped, 0

    def count(self, stepped: bool, iteration: int, run: Path) -> None:
        """Note one iteration.

        Raises:
            UserError: too many in a row were skipped.
        """
        self.row = 0 if stepped else self.row + 1
        self.skipped += not stepped
        if self.row >= self.limit:
            raise UserError(
                f"{run}: iteration {iteration}: {self.row} iterations in a row had a loss or "
                "gradient that is not finite; lower optim.*.lr, or resume from the last checkpoint"
            )


class DamageBudget:
    """Compares the damaged samples of each epoch with a share of its samples."""

    def __init__(
        self,
        share: float,
        *,
        per_epoch: int,
        batch: int,
        epoch: int = -1,
        before: int = 0,
        total: int = 0,
        first: str = "",
    ) -> None:
        """Args: share: that may be damaged. per_epoch, batch: samples of an epoch, of a step.
        The rest: :meth:`state_dict` of an earlier start."""
        self.share, self.per_epoch, self.batch = share, per_epoch, batch
        self.epoch, self.before, self.total, self.first = epoch, before, total, first

    def state_dict(self) -> dict[str, Any]:
        """The epoch, damaged samples before it and up to now, and the first one in it."""
        return {
            "epoch": self.epoch,
            "before": self.before,
            "total": self.total,
            "first": self.first,
        }

    def count(self, total: int, iteration: int, told: Sequence[str] = ()) -> None:
        """Note the damaged samples of all ranks over all starts, at an iteration.

        Args:
            told: a line for each that is new.

        Raises:
            UserError: this epoch has had too many.
        """
        epoch = iteration * self.batch // self.per_epoch
        if epoch != self.epoch:
            self.epoch, self.before, self.first = epoch, self.total, ""
        self.total = total
        self.first = self.first or next(iter(told), "")
        bad = total - self.before
        if bad > self.share * self.per_epoch:
            raise UserError(
                f"data.bad_samples: {bad} damaged of the {self.per_epoch} samples of epoch "
                f"{epoch}, more than {self.share:.2%} (first: {self.first}); run "
                "python -m data_prep verify"
            )
