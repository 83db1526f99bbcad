"""Figures of trained runs: score difference beside h (Fig. 2, 5), and curves of several runs over
iterations (Fig. 4b, 7, 9). What is drawn comes as arrays; nothing here knows networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from stack.report.canvas import COLOURS, INK, MUTED, canvas, ruled, write
from stack.report.curves import is_zero, log_ticks, plain_number, smooth, thin, trend
from stack.report.history import Curve, History

_SPAN = 25
"""A moving average is over one 25th of what it smooths."""
_NOBODY = 1e-3
"""Of the highest density: where less is, nothing of a plane is drawn."""


@dataclass(frozen=True)
class Field:
    """A plane of diffused points, and what the networks say there (Fig. 2).

    Args:
        x, y: (G,) grid. density, student: (G, G) of the diffused data and samples, rows along y.
        gap: (G, G) length of the score difference. h: (G, G) weights of mean 1 under the student.
        samples: (N, 2) diffused student samples. weighting: what h is of. level: the noise's name.
    """

    x: np.ndarray
    y: np.ndarray
    density: np.ndarray
    student: np.ndarray
    gap: np.ndarray
    h: np.ndarray
    samples: np.ndarray
    weighting: str
    level: str


@dataclass(frozen=True)
class Samples:
    """Generated samples of one run (Fig. 5): arrays (N,) of gap, h, t and log r."""

    gap: np.ndarray
    h: np.ndarray
    t: np.ndarray
    log_r: np.ndarray


def score_gap_map(out: Path, field: Field) -> list[Path]:
    """Draw Fig. 2: score difference and h side by side, over contours of the data's density; where
    neither data nor samples ever come, the networks were never asked, and nothing is drawn.

    Returns: the files written: PNG, SVG, CSV with x, y, density, student, score_difference, h.
    """
    density = field.density / field.density.max()
    nobody = np.maximum(density, field.student / field.student.max()) < _NOBODY
    with canvas(9.4, 4.3) as figure:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        shown = [
            (field.gap, "|score of teacher − fake score|", "magma_r", (0.5, 99.5)),
            (field.h, f"h, {field.weighting}", "viridis", (0.5, 99.5)),
        ]
        for axes, (whole, title, colours, ends) in zip(panels, shown, strict=True):
            values = np.ma.masked_where(nobody, whole)
            low, high = np.percentile(values.compressed(), ends)
            norm = LogNorm(low := max(low, high / 1e3), high)
            mesh = axes.pcolormesh(
                field.x, field.y, values, cmap=colours, norm=norm, rasterized=True
            )
            axes.contour(
                field.x, field.y, density, levels=[0.02, 0.2, 0.6], colors="white", linewidths=1.1
            )
            axes.scatter(
                *field.samples.T, s=2, color=INK, alpha=0.35, linewidths=0, rasterized=True
            )
            axes.set(title=title, xlim=(field.x[0], field.x[-1]), ylim=(field.y[0], field.y[-1]))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.set_box_aspect(1)
            bar = figure.colorbar(
                mesh, ax=axes, shrink=0.85, ticks=log_ticks(low, high), format=FuncFormatter(_plain)
            )
            bar.ax.minorticks_off()
            bar.outline.set_visible(False)  # type: ignore[operator]
        figure.supxlabel(
            f"{field.level}; white: 2, 20 and 60 % of the data’s highest density; dots: student;\n"
            "blank: neither the data’s nor the student’s density is a thousandth of its highest",
            fontsize=10,
            color=MUTED,
        )
        columns = ["x", "y", "density", "student", "score_difference", "h"]
        return write(figure, out, columns, _plane(field))


def _plane(field: Field) -> Iterator[tuple[float, ...]]:
    for row, y in enumerate(field.y):
        for column, x in enumerate(field.x):
            planes = (field.density, field.student, field.gap, field.h)
            values = (plane[row, column] for plane in planes)
            yield float(x), float(y), *map(float, values)


def sorted_samples(out: Path, runs: Mapping[str, Samples]) -> list[Path]:
    """Draw Fig. 5: samples sorted by score difference, and their normalised h; a column per run.

    Returns: the files written: PNG, SVG, CSV with run, rank, score_difference, h, t, log_r.
    """
    with canvas(max(5.0, 4.2 * len(runs) + 0.4), 4.4) as figure:
        grid = figure.subplots(2, len(runs), squeeze=False, sharex="col", height_ratios=(2, 3))
        rows: list[tuple[Any, ...]] = []
        for (above, below), (name, found) in zip(grid.T, runs.items(), strict=True):
            order = np.argsort(found.gap)
            gap, h = found.gap[order], found.h[order]
            rank = np.arange(1, len(order) + 1)
            above.fill_between(rank, gap, color=COLOURS[0], alpha=0.25, lw=0)
            above.plot(rank, gap, color=COLOURS[0])
            above.set(title=name.replace(" (", "\n("), ylim=(0, 1.05 * np.quantile(gap, 0.999)))
            below.scatter(rank, h, s=3, color=COLOURS[1], alpha=0.25, linewidths=0, rasterized=True)
            below.plot(rank, smooth(h, len(h) // _SPAN), color=INK)
            below.set(ylim=(0, 1.05 * np.quantile(h, 0.995)), xlim=(0, len(rank)))
            below.set_xlabel(f"{len(rank):,} samples by score difference")
            below.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            for axes in (above, below):
                ruled(axes)
            columns = (rank, gap, h, found.t[order], found.log_r[order])
            rows += [(name, *(v.item() for v in row)) for row in zip(*columns, strict=True)]
        grid[0, 0].set_ylabel("score difference")
        grid[1, 0].set_ylabel("h, mean 1")
        figure.align_ylabels()
        told = "score difference: mean |x0 of fake score − x0 of teacher|; line: moving average"
        if len(runs) == 1:
            told = told.replace("; ", "\n")
        figure.supxlabel(told, fontsize=10, color=MUTED)
        header = ["run", "rank", "score_difference", "h", "t", "log_r"]
        return write(figure, out, header, rows)


@dataclass(frozen=True)
class Overlay:
    """One pair of axes with a curve of each run.

    Args:
        figure: the logged figure. title: above. log: scale. exact: no noise to be smoothed.
    """

    figure: str
    title: str
    log: bool = False
    exact: bool = False


def overlaid(
    out: Path, panels: Sequence[Overlay], runs: Mapping[str, Mapping[str, History]]
) -> list[Path]:
    """Draw curves over iterations (Fig. 4b, 7, 9): of one run raw faintly, and a moving average; of
    several seeds the mean of theirs in a band from the lowest to the highest, over the iterations
    that all of them logged; beyond those every seed is a thin line of its own. On a log scale all
    this is of the logarithms, and what is not above zero is left out.

    Panels of which no run logged anything are left out, and so are those on a log scale that would
    hold nothing but zeros; that a line is zero is said.

    Args:
        runs: name of a line -> name of a run -> its log; runs of one line differ in their seed.

    Returns: the files written: PNG, SVG, CSV with figure, line, run, iteration, value.
    """
    zero = {panel: _zero(panel, runs) for panel in panels}
    drawn = [panel for panel in panels if {*_logged(panel, runs)} - {*zero[panel]}]
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    width = max(6.2, 4.0 * columns)
    with canvas(width, 2.9 * lines + 0.5) as figure:
        grid = figure.subplots(lines, columns, squeeze=False).flatten()
        unequal = False
        for axes, panel in zip(grid, drawn, strict=False):
            for colour, (line, seeds) in zip(_colours(len(runs)), runs.items(), strict=True):
                curves = [log.curve(panel.figure) for log in seeds.values()]
                if line not in zero[panel]:
                    unequal |= _trace(axes, curves, colour, panel)
            _dress(axes, panel, zero[panel])
        for axes in grid[len(drawn) :]:
            axes.set_visible(False)
        _legend(figure, list(runs))
        told = [f"{p.title}: zero, not drawn" for p in panels if zero[p] and p not in drawn]
        if (most := max(map(len, runs.values()))) > 1:
            told.append(f"line and band: mean, lowest and highest of {most} seeds")
        if unequal:
            told.append("thin: a seed where others logged nothing")
        if told:
            figure.supxlabel("\n".join(told), fontsize=10, color=MUTED)
        header = ["figure", "line", "run", "iteration", "value"]
        return write(figure, out, header, _log_rows(drawn, runs))


def _logged(panel: Overlay, runs: Mapping[str, Mapping[str, History]]) -> list[str]:
    """The lines of which a run logged the panel's figure."""
    return [
        line
        for line, seeds in runs.items()
        if any(log.curve(panel.figure) for log in seeds.values())
    ]


def _zero(panel: Overlay, runs: Mapping[str, Mapping[str, History]]) -> list[str]:
    """The lines that have no place on a log scale, for they are zero all along."""
    if not panel.log:
        return []
    curves = {
        line: np.concatenate([log.curve(panel.figure).values for log in runs[line].values()])
        for line in _logged(panel, runs)
    }
    return [line for line, values in curves.items() if is_zero(values)]


def _trace(axes: Axes, curves: Sequence[Curve], colour: str, panel: Overlay) -> bool:
    """Returns: whether the curves begin or end at different iterations."""
    if panel.log:
        kept = [curve.values > 0 for curve in curves]
        curves = [Curve(c.steps[k], c.values[k]) for c, k in zip(curves, kept, strict=True)]
    curves = [curve for curve in curves if curve]
    if not curves:
        return False
    bare = panel.exact or min(len(curve.steps) for curve in curves) < _SPAN
    if len(curves) == 1 and not bare:
        raw = thin(curves[0])
        axes.plot(raw.steps, raw.values, color=colour, alpha=0.22, linewidth=0.8)
    smoothed = [curve if bare else trend(curve, log=panel.log) for curve in curves]
    first = max(curve.steps[0] for curve in curves)
    last = min(curve.steps[-1] for curve in curves)
    steps = min(smoothed, key=lambda curve: curve.steps[-1]).steps
    steps = steps[(steps >= first) & (steps <= last)]
    found = np.stack([np.interp(steps, curve.steps, curve.values) for curve in smoothed])
    mean = np.exp(np.log(found).mean(0)) if panel.log else found.mean(0)
    axes.plot(steps, mean, color=colour, marker="o" if bare else "", markersize=3)
    if len(curves) > 1:
        axes.fill_between(steps, found.min(0), found.max(0), color=colour, alpha=0.18, lw=0)
    for curve in smoothed:  # A mean would jump where a seed ends.
        alone = np.where((curve.steps < first) | (curve.steps > last), curve.values, np.nan)
        if np.isfinite(alone).any():
            line, *_ = axes.plot(curve.steps, alone, color=colour, alpha=0.6, linewidth=0.8)
            line.set(marker="o" if bare else "", markersize=2)
    return any(curve.steps[0] < first or curve.steps[-1] > last for curve in curves)


def _dress(axes: Axes, panel: Overlay, zero: Sequence[str]) -> None:
    if zero:
        told = f"zero: {', '.join(zero)}"
        axes.text(0.99, 0.99, told, transform=axes.transAxes, ha="right", va="top", fontsize=9)
    if panel.log:
        axes.set_yscale("log")
    axes.set_title(panel.title + (", log scale" if panel.log else ""))
    axes.set_xlabel("iteration")
    axes.set_xlim(left=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    if panel.log:
        axes.yaxis.set_major_locator(log_ticks(*axes.get_ylim()))
        axes.yaxis.set_minor_locator(NullLocator())
    ruled(axes)


def _legend(figure: Figure, names: list[str]) -> None:
    lines = [
        figure.axes[0].plot([], [], color=colour, label=name)[0]
        for colour, name in zip(_colours(len(names)), names, strict=True)
    ]
    inches = 0.8 + 0.09 * max(map(len, names))
    abreast = int(figure.get_figwidth() / inches)
    figure.legend(handles=lines, loc="outside upper left", ncols=max(1, min(len(names), abreast)))


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _log_rows(
    panels: Sequence[Overlay], runs: Mapping[str, Mapping[str, History]]
) -> Iterator[tuple[Any, ...]]:
    for panel in panels:
        for line, seeds in runs.items():
            for name, log in seeds.items():
                curve = log.curve(panel.figure)
                for step, value in zip(curve.steps, curve.values, strict=True):
                    yield panel.figure, line, name, int(step), float(value)


def _plain(value: float, _: Any) -> str:
    return plain_number(value)
