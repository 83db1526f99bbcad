"""Charts per noise level: reliability of the ratio, its error, variance of h, histograms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from stack.report.curves import MUTED, SERIES, dressed, is_zero, page_svg
from stack.report.folder import RunFolder
from stack.report.levels import Levels, read_levels
from stack.report.sections import keys, said_html

GOOD = 0.02
"""Expected calibration error of a discriminator that can be believed."""
_GROUPS = ("most noise", "middle", "least noise")
_FEWEST = 30
"""Samples in a bin of which a reliability is drawn."""
_H_ENDS = (2.0**-6.5, 2.0**6.5)
"""Of the histogram of h, whose outer classes are open; the others are powers of two wide."""


def levels_html(runs: Mapping[str, RunFolder]) -> str:
    """The section of what runs logged per noise level; empty if none did."""
    tables = {name: read_levels(run.history) for name, run in runs.items()}
    figures = level_figures(tables)
    if not figures:
        return ""
    since = {found.since for found in tables.values() if found}
    told = f"from iteration {min(since):,} on" if len(since) == 1 else "over the end of each log"
    note = f'<p class="note">Added up {told}; level 1 has the most noise.</p>'
    return f"<h2>Ratio and weight by noise level</h2>{note}{figures}"


def level_figures(runs: Mapping[str, Levels | None]) -> str:
    """Figures of what runs logged per noise level; lines have the runs' colours.

    Args:
        runs: name -> tables, in the order of their colours; None of one that logged none.
    """
    found = {name: levels for name, levels in runs.items() if levels}
    calibrated = {name: levels for name, levels in found.items() if levels.calibration.size}
    weighted = {name: levels for name, levels in found.items() if levels.h.size}
    parts = [
        _figure(
            f"Reliability of r{_of(name, runs)}",
            keys(_GROUPS),
            _reliability(levels),
            "Share of data among points of one predicted share r / (1 + r); on the dashed line "
            "the ratio is right.",
            label="share of data against prediction",
            salt=f"reliability {name}",
        )
        for name, levels in calibrated.items()
    ]
    if calibrated:
        values = {name: levels.errors for name, levels in calibrated.items()}
        note = f"Mean distance from that line. Below {GOOD} (dashed) is good."
        parts.append(_by_level("Calibration error of r", "error", values, list(runs), note, GOOD))
    if weighted:
        values = {name: levels.variances for name, levels in weighted.items()}
        parts.append(_variances(values, list(runs)))
    for name, levels in weighted.items():
        low, high = np.exp(levels.r_bounds).tolist()
        parts.append(_heat(f"r by noise level{_of(name, runs)}", levels.r_counts, low, high, name))
        parts.append(_heat(f"h by noise level{_of(name, runs)}", levels.h_counts, *_H_ENDS, name))
    return f'<div class="charts">{"".join(parts)}</div>' if parts else ""


def _of(name: str, runs: Mapping[str, object]) -> str:
    return f", {name}" if len(runs) > 1 else ""


def _figure(
    title: str, legend: str, draw: Callable[[Axes], None], note: str, *, label: str, salt: str
) -> str:
    return (
        f"<figure><figcaption><h3>{escape(title)}</h3>{legend}</figcaption>"
        f"{page_svg(draw, label, salt=salt)}<p>{escape(note)}</p></figure>"
    )


def _reliability(found: Levels) -> Callable[[Axes], None]:
    count = len(found.calibration)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, dashes=(4, 3))
        for number in range(len(_GROUPS)):
            span = slice(number * count // 3, (number + 1) * count // 3)
            predicted, share, counts = found.reliability(span)
            kept = counts >= _FEWEST
            axes.plot(predicted[kept], share[kept], "o-", color=SERIES[number], linewidth=1.5, ms=3)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        dressed(axes, "share of data", "predicted share r / (1 + r)")

    return draw


def _variances(values: Mapping[str, np.ndarray], runs: Sequence[str]) -> str:
    """Of runs whose h is constant it is said, not drawn."""
    title = "Variance of h by noise level"
    zero = [name for name, curve in values.items() if is_zero(curve)]
    if len(zero) == len(values):
        return said_html(title, "Zero: h is constant.")
    note = "Var h / (E h)² at each level: where the weighting adds noise."
    if zero:
        note += f" Zero, h is constant: {', '.join(zero)}."
    drawn = {name: curve for name, curve in values.items() if name not in zero}
    return _by_level(title, "variance", drawn, runs, note)


def _by_level(
    title: str,
    label: str,
    values: Mapping[str, np.ndarray],
    runs: Sequence[str],
    note: str,
    reference: float | None = None,
) -> str:
    """A line per run that has values; the others keep their colours."""

    def draw(axes: Axes) -> None:
        for name, curve in values.items():
            levels = np.arange(1, len(curve) + 1)
            colour = SERIES[runs.index(name) % len(SERIES)]
            axes.plot(levels, curve, "o-", color=colour, linewidth=1.5, ms=3)
        if reference is not None:
            axes.axhline(reference, color=MUTED, linewidth=1, dashes=(4, 3))
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        dressed(axes, label, "noise level, 1 has the most")

    legend = keys(runs, shown=values) if len(runs) > 1 else ""
    return _figure(title, legend, draw, note, label=f"{label} by noise level", salt=title)


def _heat(title: str, counts: np.ndarray, low: float, high: float, name: str) -> str:
    """Rows are noise levels, columns equal classes of a logarithm; darker is more."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def draw(axes: Axes) -> None:
        levels, classes = share.shape
        edges = np.geomspace(low, high, classes + 1)
        axes.set_xscale("log")
        for row, column in np.argwhere(share > 0):
            corner, width = (edges[column], row + 0.54), edges[column + 1] - edges[column]
            shade = min(1.0, float(share[row, column]) / 0.6)
            box = Rectangle(corner, width, 0.92, color=SERIES[0], alpha=shade, linewidth=0)
            axes.add_patch(box)
        axes.axvline(1, color=MUTED, linewidth=1, dashes=(4, 3))
        axes.set(xlim=(low, high), ylim=(levels + 0.5, 0.5))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        symbol = title[0]
        dressed(axes, "noise level, 1 has the most", f"{symbol}, log scale")
        axes.grid(visible=False)

    note = "A row is one level's histogram over the end of the run; dashed: 1."
    return _figure(title, "", draw, note, label=title, salt=f"{title} {name}")
