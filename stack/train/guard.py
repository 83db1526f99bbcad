"""What may stop a run: signals, too many skipped iterations, too many damaged samples."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

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

    def __init__(self, share: float, *, per_epoch: int, batch: int) -> None:
        """Args: share: that may be damaged. per_epoch, batch: samples of an epoch, of a step."""
        self.share, self.per_epoch, self.batch = share, per_epoch, batch
        self.epoch, self.before, self.total = -1, 0, 0

    def count(self, total: int, iteration: int) -> None:
        """Note the damaged samples of all ranks since the start, at an iteration.

        Raises:
            UserError: this epoch has had too many.
        """
        epoch = iteration * self.batch // self.per_epoch
        if epoch != self.epoch:
            self.epoch, self.before = epoch, self.total
        self.total = total
        bad = total - self.before
        if bad > self.share * self.per_epoch:
            raise UserError(
                f"data.bad_samples: {bad} damaged of the {self.per_epoch} samples of epoch "
                f"{epoch}, more than {self.share:.2%}; see the shards named above, and "
                "python -m data_prep verify"
            )
