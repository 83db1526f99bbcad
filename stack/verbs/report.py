"""``stack report``: one run, or several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from stack.report.compare import write_comparison
from stack.report.folder import open_run
from stack.report.report import write_report
from stack.report.sections import newest_grid
from stack.report.terminal import figures_table


def report(runs: Sequence[Path], out: Path | None) -> None:
    """Write the page and print its path; of one run also its figures and its newest pictures."""
    if len(runs) > 1:
        print(write_comparison(runs, out))
        return
    page = write_report(runs[0], out)
    evaluation = open_run(runs[0]).evaluation
    if evaluation:
        Console(highlight=False).print(figures_table(evaluation))
    if pictures := newest_grid(runs[0]):
        print(f"pictures  {pictures}")
    print(f"report    {page}")
