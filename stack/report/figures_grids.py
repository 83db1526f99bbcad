"""Sample grids as figures: a row of pictures per model, the prompts above (Fig. 6, 10 to 18)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stack.report.canvas import INK, MUTED, canvas, write

_COLUMNS = 10
"""Pictures abreast at most; more go into further blocks of rows below, of equal length."""
_SIDE = 1.15
"""Inches of a picture."""


def picture_grid(
    out: Path,
    rows: Mapping[str, np.ndarray],
    columns: Sequence[str],
    *,
    note: str = "",
    details: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Draw pictures in labelled rows and columns.

    Args:
        rows: model -> (N, H, W, 3) uint8. columns: N titles: prompts, or seeds.
        note: below everything. details: further columns of the CSV, the same in every row.

    Returns: the files written: PNG, SVG, CSV with block, row, column, title, and ``details``.
    """
    wide = -(-len(columns) // -(-len(columns) // _COLUMNS))
    blocks = [range(i, min(i + wide, len(columns))) for i in range(0, len(columns), wide)]
    titles = ["\n".join(textwrap.wrap(title, 14)[:4]) for title in columns]
    lines = max(title.count("\n") + 1 for title in titles)
    height = len(blocks) * (len(rows) * _SIDE + 0.17 * lines + 0.1) + (0.3 if note else 0)
    with canvas(wide * _SIDE + 1.5, height) as figure:
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0, hspace=0)  # type: ignore
        grid = figure.subplots(len(blocks) * len(rows), wide, squeeze=False)
        for axes in grid.flatten():
            axes.set_axis_off()
        for number, block in enumerate(blocks):
            for line, (name, pictures) in enumerate(rows.items()):
                across = grid[number * len(rows) + line]
                across[0].text(
                    -0.08,
                    0.5,
                    name,
                    transform=across[0].transAxes,
                    ha="right",
                    va="center",
                    fontsize=9.5,
                )
                for axes, column in zip(across, block, strict=False):
                    axes.imshow(pictures[column], interpolation="nearest")
                    if line == 0:
                        axes.set_title(titles[column], fontsize=8.5, color=INK, pad=3)
        if note:
            figure.supxlabel(note, fontsize=9, color=MUTED)
        header = ["block", "row", "column", "title", *(details or {})]
        return write(figure, out, header, _cells(rows, columns, wide, details or {}))


def _cells(
    rows: Mapping[str, np.ndarray], columns: Sequence[str], wide: int, details: Mapping[str, Any]
) -> Iterator[tuple[Any, ...]]:
    for name in rows:
        for number, title in enumerate(columns):
            block, column = divmod(number, wide)
            yield block, " ".join(name.split()), column, title, *details.values()
