"""Progress of long work: a bar with rate and time left, or plain lines where no one watches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_LINE_SECONDS = 10.0


class Bar(Protocol):
    """What :func:`progress` hands out."""

    def advance(self, count: int = 1, **figures: float) -> None:
        """Count ``count`` more steps and show ``figures`` beside the bar."""


def _figures(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


class _RichBar:
    def __init__(self, bars: Progress, task: TaskID, initial: int) -> None:
        self.bars, self.task = bars, task
        self.done, self.initial, self.start = initial, initial, time.monotonic()

    def advance(self, count: int = 1, **figures: float) -> None:
        self.done += count
        rate = (self.done - self.initial) / max(time.monotonic() - self.start, 1e-9)
        self.bars.update(self.task, advance=count, rate=f"{rate:.1f}/s")
        if figures:
            self.bars.update(self.task, figures=_figures(figures))


class _PlainBar:
    def __init__(self, console: Console, name: str, total: int, initial: int) -> None:
        self.console, self.name, self.total = console, name, total
        self.done, self.initial, self.start = initial, initial, time.monotonic()
        self.last = self.start

    def advance(self, count: int = 1, **figures: float) -> None:
        self.done += count
        now = time.monotonic()
        if self.done < self.total and now - self.last < _LINE_SECONDS:
            return
        self.last = now
        rate = (self.done - self.initial) / max(now - self.start, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        line = f"{self.name}: {self.done}/{self.total}  {rate:.1f}/s  {left:.0f} s left"
        self.console.print(f"{line}  {_figures(figures)}".rstrip(), highlight=False)


@contextmanager
def progress(name: str, *, total: int, initial: int = 0) -> Iterator[Bar]:
    """Show the progress of ``total`` steps of which ``initial`` are already done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainBar(console, name, total, initial)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(name, total=total, completed=initial, rate="", figures="")
        yield _RichBar(bars, task, initial)
