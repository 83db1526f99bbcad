"""The one look of every figure, and how a figure is written: PNG, SVG, and its numbers as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stack.util.files import write_atomic

INK, MUTED, RULE = "#1c2024", "#656c75", "#d5d5cf"
COLOURS = ("#0b6aa8", "#c8501e", "#1f8a5f", "#8b4a9c", "#9a7400", "#56616d")
"""One per curve, those of a report's page."""
DIVERGENCES = {
    "reverse_kl": "reverse KL",
    "softened_reverse_kl": "softened reverse KL",
    "jensen_shannon": "Jensen–Shannon",
    "squared_hellinger": "squared Hellinger",
    "forward_kl": "forward KL",
    "jeffreys": "Jeffreys",
}
"""What readers call the divergences, in the order of their colours."""
_RC: dict[Any, Any] = {
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "font.family": "sans-serif",
    "font.size": 11,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.7,
    "svg.fonttype": "none",
    "svg.hashsalt": "figures",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}
_DPI = 160


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of so many inches; draw on it and write it inside the context."""
    with matplotlib.rc_context(_RC):
        yield Figure(figsize=(width, height), layout="constrained")


def write(
    figure: Figure, out: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> list[Path]:
    """Write a figure and the numbers behind it.

    Args:
        out: its suffix is replaced. columns: of the CSV; numbers keep six digits.

    Returns: the files written: PNG, SVG, CSV.
    """
    paths = [out.with_suffix(suffix) for suffix in (".png", ".svg", ".csv")]
    for path in paths[:2]:
        buffer = io.BytesIO()
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(buffer, format=path.suffix[1:], dpi=_DPI, metadata=metadata)
        write_atomic(path, buffer.getvalue())
    write_atomic(paths[2], table(columns, rows))
    return paths


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV, numbers with six digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def ruled(axes: Axes) -> None:
    """Light horizontal rules behind what is drawn, no ticks."""
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, pad=5)


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
