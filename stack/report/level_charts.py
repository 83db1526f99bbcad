"""Charts per noise level: reliability of the ratio, its error, variance of h, histograms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from stack.report.curves import MUTED, RULE, SERIES, page_svg, plain_number
from stack.report.levels import Levels

GOOD = 0.02
"""Expected calibration error of a discriminator that can be believed."""
_GROUPS = ("most noise", "middle", "least noise")
_FEWEST = 30
"""Samples in a bin of which a reliability is drawn."""
_H_ENDS = (2.0**-6.5, 2.0**6.5)
"""Of the histogram of h, whose outer classes are open; the others are powers of two wide."""


def level_figures(runs: Mapping[str, Levels]) -> str:
    """Figures of what runs logged per noise level; lines have the runs' colours.

    Args:
        runs: name -> tables, in the order of their colours; those without any are left out.
    """
    calibrated = {name: found for name, found in runs.items() if found.calibration.size}
    weighted = {name: found for name, found in runs.items() if found.h.size}
    parts = [
        _figure(
            f"Reliability of r{_of(name, runs)}",
            _keys(_GROUPS),
            _reliability(found),
            "Share of data among points of one predicted share r / (1 + r); on the dashed line "
            "the ratio is right.",
            label="share of data against prediction",
            salt=f"reliability {name}",
        )
        for name, found in calibrated.items()
    ]
    if calibrated:
        values = {name: found.errors for name, found in calibrated.items()}
        note = f"Mean distance from that line. Below {GOOD} (dashed) is good."
        parts.append(_by_level("Calibration error of r", "error", values, runs, note, GOOD))
    if weighted:
        values = {name: found.variances for name, found in weighted.items()}
        note = "Var h / (E h)² at each level: where the weighting adds noise."
        parts.append(_by_level("Variance of h by noise level", "variance", values, runs, note))
    for name, found in weighted.items():
        low, high = np.exp(found.r_bounds).tolist()
        parts.append(_heat(f"r by noise level{_of(name, runs)}", found.r_counts, low, high, name))
        parts.append(_heat(f"h by noise level{_of(name, runs)}", found.h_counts, *_H_ENDS, name))
    return f'<div class="charts">{"".join(parts)}</div>' if parts else ""


def _of(name: str, runs: Mapping[str, Levels]) -> str:
    return f", {name}" if len(runs) > 1 else ""


def _keys(names: Mapping[str, int] | tuple[str, ...]) -> str:
    numbered = names if isinstance(names, Mapping) else {n: i for i, n in enumerate(names)}
    spans = (
        f'<span class="key"><i style="background:var(--series-{i % len(SERIES) + 1})"></i>'
        f"{escape(name)}</span>"
        for name, i in numbered.items()
    )
    return f"<p>{''.join(spans)}</p>"


def _figure(
    title: str, keys: str, draw: Callable[[Axes], None], note: str, *, label: str, salt: str
) -> str:
    return (
        f"<figure><figcaption><h3>{escape(title)}</h3>{keys}</figcaption>"
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
        _plain(axes, "share of data", "predicted share r / (1 + r)")

    return draw


def _by_level(
    title: str,
    label: str,
    values: Mapping[str, np.ndarray],
    runs: Mapping[str, Levels],
    note: str,
    reference: float | None = None,
) -> str:
    colours = {name: number for number, name in enumerate(runs)}

    def draw(axes: Axes) -> None:
        for name, curve in values.items():
            levels = np.arange(1, len(curve) + 1)
            colour = SERIES[colours[name] % len(SERIES)]
            axes.plot(levels, curve, "o-", color=colour, linewidth=1.5, ms=3)
        if reference is not None:
            axes.axhline(reference, color=MUTED, linewidth=1, dashes=(4, 3))
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _plain(axes, label, "noise level, 1 has the most")

    keys = _keys({name: colours[name] for name in values}) if len(runs) > 1 else ""
    return _figure(title, keys, draw, note, label=f"{label} by noise level", salt=title)


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
        _plain(axes, "noise level, 1 has the most", f"{symbol}, log scale")
        axes.grid(visible=False)

    note = "A row is one level's histogram over the end of the run; dashed: 1."
    return _figure(title, "", draw, note, label=title, salt=f"{title} {name}")


def _plain(axes: Axes, above: str, below: str) -> None:
    number = FuncFormatter(lambda value, _: plain_number(value))
    axes.xaxis.set_major_formatter(number)
    axes.yaxis.set_major_formatter(number)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, pad=5)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.text(0, 1.06, above, transform=axes.transAxes, ha="left", va="bottom")
    axes.set_xlabel(below, loc="right", labelpad=3)
