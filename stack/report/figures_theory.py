"""Figures that follow from the divergences alone: the paper's Fig. 3 and 4a."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes

from stack.fdistill.divergence import DIVERGENCES
from stack.report.canvas import COLOURS, canvas, ruled, write
from stack.report.canvas import DIVERGENCES as TITLES

Reading = Literal["squared", "literal"]
"""Var h / (E h)^2, which is the variance of h / E h; or Var h / E h, as the paper's text has it."""

_REACH = 14.0
"""Standard deviations beyond which nothing of h^2 under either Gaussian is left."""
_READINGS: dict[Reading, str] = {
    "squared": "Var h / (E h)²",
    "literal": "Var h / E h",
}


def h_variance(divergence: str, gap: float, reading: Reading = "squared") -> float:
    """Normalised variance of h(p / q) under q = N(0, 1) with p = N(gap, 1) (Fig. 4a).

    By quadrature in float64. h grows no faster than r, so its square times q is at most a Gaussian
    about 2 gap, which the grid holds.
    """
    x = torch.linspace(-_REACH, 2 * gap + _REACH, 20001, dtype=torch.float64)
    q = (-x.square() / 2).exp()
    q = q / q.sum()
    h = DIVERGENCES[divergence].h_from_log(gap * x - gap**2 / 2)
    mean = (q * h).sum()
    variance = (q * (h - mean).square()).sum()
    return float(variance / (mean if reading == "literal" else mean.square()))


def divergence_curves(out: Path, *, r_max: float = 4.0) -> list[Path]:
    """Draw Fig. 3: \\|f'(r)\\| and h(r) of the six divergences.

    Returns: the files written: PNG, SVG, CSV with divergence, r, abs_df, h.
    """
    r = torch.linspace(r_max / 400, r_max, 400, dtype=torch.float64)
    curves = {
        name: (DIVERGENCES[name].df(r).abs().numpy(), DIVERGENCES[name].h(r).numpy())
        for name in TITLES
    }
    with canvas(9.2, 3.4) as figure:
        axes = figure.subplots(1, 2, sharex=True)
        for panel, title in ((0, "|f ′(r)|"), (1, "h(r) = f ″(r) r²")):
            for colour, (name, values) in zip(COLOURS, curves.items(), strict=True):
                axes[panel].plot(r, values[panel], color=colour, label=TITLES[name])
            axes[panel].set(title=title, xlim=(0, r_max), ylim=(0, r_max))
            axes[panel].set_xlabel("r = p teacher / q student")
            ruled(axes[panel])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
        rows = (
            (name, float(at), float(df), float(h))
            for name, (dfs, hs) in curves.items()
            for at, df, h in zip(r.tolist(), dfs, hs, strict=True)
        )
        return write(figure, out, ["divergence", "r", "abs_df", "h"], rows)


def variance_of_h(out: Path, gaps: Sequence[float] | None = None) -> list[Path]:
    """Draw Fig. 4a: normalised variance of h against the gap of two Gaussians, both readings.

    Returns: the files written: PNG, SVG, CSV with divergence, gap, squared, literal.
    """
    chosen = np.round(np.linspace(0, 3, 61), 6).tolist() if gaps is None else list(gaps)
    table = {
        name: {reading: [h_variance(name, gap, reading) for gap in chosen] for reading in _READINGS}
        for name in TITLES
    }
    with canvas(9.2, 3.4) as figure:
        panels = figure.subplots(1, 2, sharex=True)
        for axes, (reading, title) in zip(panels, _READINGS.items(), strict=True):
            _variances(axes, chosen, {name: table[name][reading] for name in table})
            axes.set_title(title + (", default reading" if reading == "squared" else ", literal"))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
        return write(figure, out, ["divergence", "gap", *_READINGS], _rows(chosen, table))


def _variances(axes: Axes, gaps: list[float], curves: dict[str, list[float]]) -> None:
    """Log scale, on which the zero of reverse KL, 1e-32 by rounding, lies along the lower edge."""
    floor = 1e-2
    axes.set_yscale("log")
    for colour, (name, values) in zip(COLOURS, curves.items(), strict=True):
        if max(values) > floor:
            axes.plot(gaps, values, color=colour, label=TITLES[name])
        else:
            level, label = [floor] * len(gaps), f"{TITLES[name]} (zero)"
            axes.plot(gaps, level, "--", color=colour, label=label, clip_on=False)
    axes.set(xlim=(gaps[0], gaps[-1]), ylim=(floor, 2e4))
    axes.set_xlabel("gap of the means of two unit Gaussians")
    ruled(axes)


def _rows(
    gaps: list[float], table: dict[str, dict[Reading, list[float]]]
) -> Iterator[tuple[Any, ...]]:
    for name, readings in table.items():
        yield from ((name, *row) for row in zip(gaps, *readings.values(), strict=True))
