"""``stack report``: one run, or several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stack.report.compare import write_comparison
from stack.report.report import write_report


def report(runs: Sequence[Path], out: Path | None) -> Path:
    """Write the page and return its path."""
    return write_report(runs[0], out) if len(runs) == 1 else write_comparison(runs, out)
