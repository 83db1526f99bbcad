"""Curves over iterations as SVG for a page.

matplotlib draws; then its colours become the page's CSS variables and its text stays text, so one
picture serves a light and a dark page, a phone and a laptop.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from stack.report.history import Curve

INK, MUTED, RULE = "#010101", "#010102", "#010103"
SERIES = ("#010111", "#010112", "#010113", "#010114", "#010115", "#010116")
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule"} | {
    colour: f"--series-{i + 1}" for i, colour in enumerate(SERIES)
}
_POINTS = 400  # drawn of one raw curve; a page holds a dozen of them
_SIZE = (400, 240)  # of a chart, in CSS pixels at its natural size
_ROUNDING = 1e-9  # what is called zero is below this
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 13,
    "font.family": "sans-serif",
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": MUTED,
    "lines.solid_joinstyle": "round",
    "lines.markersize": 3,
}


@dataclass(frozen=True)
class Chart:
    """One pair of axes over iterations.

    Args:
        y_label: what the numbers are, with their unit.
        lines: each drawn raw, faintly, under its moving average.
        exact: the lines have no noise; draw them as they are.
        band: low, middle, high over the same iterations; the middle is smoothed like a line.
        log: logarithmic if every value is above zero and they span a factor of three.
        references: values to compare with, drawn as dashed lines.
        limits: ends of a linear y axis, None for an end that follows the values.
        marks: iterations marked by a thin upright line, e.g. restarts.
    """

    y_label: str
    lines: Sequence[Curve] = ()
    exact: bool = False
    band: Sequence[Curve] = ()
    log: bool = False
    references: Sequence[float] = ()
    limits: tuple[float | None, float | None] = (None, None)
    marks: Sequence[float] = ()


def is_zero(values: np.ndarray) -> bool:
    """Whether there are finite values and all are zero but for rounding: on a log scale there is
    no place for them, and a linear one of nothing else is blank."""
    finite = values[np.isfinite(values)]
    return bool(len(finite)) and float(np.abs(finite).max()) < _ROUNDING


def smooth(values: np.ndarray, span: int) -> np.ndarray:
    """Centred moving average over ``span`` values, over fewer at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    half = max(0, span // 2)
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def thin(curve: Curve, points: int = _POINTS) -> Curve:
    """At most ``points`` of a curve: of every run of neighbours the lowest and the highest."""
    if len(curve.steps) <= points:
        return curve
    runs = np.array_split(np.arange(len(curve.steps)), points // 2)
    extremes = [{run[curve.values[run].argmin()], run[curve.values[run].argmax()]} for run in runs]
    kept = [index for pair in extremes for index in sorted(pair)]
    return Curve(curve.steps[kept], curve.values[kept])


def binned(curve: Curve, points: int = _POINTS) -> Curve:
    """At most ``points`` of a curve: the means of runs of neighbours."""
    if len(curve.steps) <= points:
        return curve
    pairs = [
        (run.mean(), values.mean())
        for run, values in zip(
            np.array_split(curve.steps, points), np.array_split(curve.values, points), strict=True
        )
    ]
    return Curve(*np.array(pairs).T)


def trend(curve: Curve, *, log: bool = False) -> Curve:
    """The moving average over a thirtieth of the curve, but five rows at least; for a log scale of
    the logarithms, for there a spike would lift an arithmetic mean as long as it is in the window.
    """
    values = np.log(curve.values) if log else curve.values
    found = binned(Curve(curve.steps, smooth(values, max(5, len(curve.steps) // 30))))
    return Curve(found.steps, np.exp(found.values)) if log else found


def chart_svg(chart: Chart, *, salt: str) -> str:
    """Draw a chart as an SVG element to put into a page.

    Args:
        salt: distinguishes the ids inside from those of the page's other charts.
    """
    return page_svg(lambda axes: _draw(axes, chart), chart.y_label, salt=salt)


def page_svg(
    draw: Callable[[Axes], None], label: str, *, salt: str, size: tuple[int, int] = _SIZE
) -> str:
    """What ``draw`` puts on a pair of axes, as an SVG element to put into a page.

    Args:
        label: what it shows, for those who do not see it. salt: as in :func:`chart_svg`.
        size: in CSS pixels at its natural size.
    """
    with matplotlib.rc_context({**_RC, "svg.hashsalt": salt}):
        width, height = size
        figure = Figure(figsize=(width / 72, height / 72))
        figure.patch.set_alpha(0)
        # Room of as many pixels around the axes whatever their size.
        axes = figure.add_axes((52 / width, 48 / height, 1 - 72 / width, 1 - 77 / height))
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), label)


def plain_number(value: float) -> str:
    """A short label for an axis: 0.02, 300, 20k, 10⁻⁵."""
    if value == 0:
        return "0"
    exponent = int(np.floor(np.log10(abs(value)) + 1e-9))
    if -4 <= exponent < 4:
        return f"{value:.6g}"
    if 4 <= exponent < 6:
        return f"{value / 1000:.6g}k"
    mantissa = round(value / 10.0**exponent, 6)
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if mantissa == 1 else f"{mantissa:.6g}·{power}"


def log_ticks(low: float, high: float) -> LogLocator:
    """Of a logarithmic axis: powers of ten, with 2 and 5 between where those are few."""
    return LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=7)


def dressed(axes: Axes, above: str, below: str) -> None:
    """Light rules behind what is drawn, short numbers, and words at the ends of both axes."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
        axis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, pad=5)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.text(0, 1.06, above, transform=axes.transAxes, ha="left", va="bottom")
    axes.set_xlabel(below, loc="right", labelpad=3)


def _draw(axes: Axes, chart: Chart) -> None:
    drawn = [curve for curve in (*chart.lines, *chart.band) if curve]
    values = np.concatenate([curve.values for curve in drawn])
    log = bool(chart.log and values.min() > 0 and values.max() > 3 * values.min())
    for i, curve in enumerate(chart.lines):
        if not curve:
            continue  # Its colour is another run's nonetheless.
        raw, colour = thin(curve), SERIES[i % len(SERIES)]
        if chart.exact or len(raw.steps) == 1:
            marker = "o" if len(raw.steps) == 1 else ""
            axes.plot(raw.steps, raw.values, color=colour, linewidth=1.7, marker=marker)
        else:
            smoothed = trend(curve, log=log)
            axes.plot(raw.steps, raw.values, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(smoothed.steps, smoothed.values, color=colour, linewidth=1.7)
    if chart.band:
        low, _, high = (binned(curve) for curve in chart.band)
        axes.fill_between(low.steps, low.values, high.values, color=SERIES[0], alpha=0.22, lw=0)
        middle = trend(chart.band[1], log=log)
        axes.plot(middle.steps, middle.values, color=SERIES[0], linewidth=1.7)
    for reference in chart.references:
        axes.axhline(reference, color=MUTED, linewidth=1, dashes=(4, 3))
    for mark in chart.marks:
        axes.axvline(mark, color=MUTED, linewidth=0.8, dashes=(1, 2))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlim(0, 1.01 * max(curve.steps.max() for curve in drawn))
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(log_ticks(values.min(), values.max()))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_ylim(*chart.limits)
    dressed(axes, chart.y_label + (", log scale" if log else ""), "iteration")


def _for_page(svg: str, label: str) -> str:
    """The bare svg element: no prolog, no fixed size, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(style|metadata)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"| xmlns(:\w+)?="[^"]*"| font-family: [^;]*;', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"\s+", " ", svg).replace("> <", "><")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
