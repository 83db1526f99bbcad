"""Figures of the paper, drawn from samples, with the numbers behind each as CSV beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from stack.report.canvas import COLOURS, INK, canvas, write

_DATA, _STUDENT = COLOURS[5], COLOURS[0]


def scatter_modes(
    out: Path,
    real: np.ndarray,
    rows: Mapping[str, Mapping[int, np.ndarray]],
    centres: np.ndarray,
    *,
    reach: float,
) -> list[Path]:
    """Draw 2-D samples as the paper's Fig. 8: the data, then the student at several iterations.

    Args:
        out: picture to write; its suffix is replaced, and .png, .svg and .csv are written.
        real: (N, 2) samples of the data.
        rows: one row of panels each: title -> {iteration: samples (M, 2)}.
        centres: (K, 2) modes of the data. reach: in the samples' units.

    Returns: the files written: PNG, SVG, CSV.
    """
    panels = 1 + max(len(stages) for stages in rows.values())
    with canvas(2.1 * panels + 0.3, 2.6 * len(rows)) as figure:
        grid = figure.subplots(len(rows), panels, squeeze=False, sharex=True, sharey=True)
        students = [samples for stages in rows.values() for samples in stages.values()]
        grid[0, 0].set(**_square(np.concatenate([real, *students])))
        for line, (title, stages) in zip(grid, rows.items(), strict=True):
            _scatter(line[0], real, _DATA, "data", f"{len(centres)} modes")
            line[0].set_ylabel(title, color=INK)
            for axes, (step, samples) in zip(line[1:], stages.items(), strict=False):
                covered = covered_modes(samples, real, centres, reach)
                told = f"{covered} of {len(centres)} modes"
                _scatter(axes, samples, _STUDENT, f"iteration {step:,}", told)
            for axes in line[1 + len(stages) :]:
                axes.set_visible(False)
        return write(figure, out, ["row", "iteration", "x", "y"], _dots(real, rows))


def covered_modes(samples: np.ndarray, real: np.ndarray, centres: np.ndarray, reach: float) -> int:
    """How many modes hold at least a tenth of the share that they hold of the real samples."""
    fair = mode_shares(real, centres, reach)
    return int((mode_shares(samples, centres, reach) >= fair / 10).sum())


def mode_shares(samples: np.ndarray, centres: np.ndarray, reach: float) -> np.ndarray:
    """Share of samples (N, 2) that belong to each of the centres (K, 2): float64 (K,).

    A sample belongs to its nearest mode if it lies within ``reach`` of the centre.
    """
    distances = np.linalg.norm(samples[:, None] - centres[None], axis=-1)
    nearest = distances.argmin(1)[distances.min(1) <= reach]
    return np.bincount(nearest, minlength=len(centres)) / len(samples)


def _square(samples: np.ndarray) -> dict[str, tuple[float, float]]:
    """Limits of equal length that hold samples (N, 2), a few stray ones aside."""
    low, high = np.quantile(samples, [0.001, 0.999], axis=0)
    middle, reach = (low + high) / 2, 0.55 * (high - low).max()
    ends = np.stack([middle - reach, middle + reach]).T.tolist()
    return {"xlim": tuple(ends[0]), "ylim": tuple(ends[1])}


def _scatter(axes: Axes, samples: np.ndarray, colour: str, title: str, below: str) -> None:
    # Thousands of dots are kept as pixels inside the SVG, the text as text.
    axes.scatter(
        samples[:, 0], samples[:, 1], s=3, color=colour, alpha=0.35, linewidths=0, rasterized=True
    )
    axes.set_title(title, color=INK, fontsize=11, pad=5)
    axes.set_xlabel(below, labelpad=5)
    axes.set_box_aspect(1)
    axes.spines[["top", "right"]].set_visible(True)
    axes.set_xticks([])
    axes.set_yticks([])


def _dots(
    real: np.ndarray, rows: Mapping[str, Mapping[int, np.ndarray]]
) -> Iterator[tuple[Any, ...]]:
    """Every dot drawn: row title ("data" for the real samples), iteration, x, y."""
    yield from (("data", "", float(x), float(y)) for x, y in real)
    for title, stages in rows.items():
        for step, samples in stages.items():
            yield from ((title, step, float(x), float(y)) for x, y in samples)
