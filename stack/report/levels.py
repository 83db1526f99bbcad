"""What a run logged per noise level, added up over the end of its log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stack.report.history import History

_SHARE = 0.25
"""Of the rows, the last ones, that are added up."""
_KEYS = ("calibration", "h", "r_counts", "h_counts")


@dataclass(frozen=True)
class Levels:
    """Tables of K noise levels, most noise first; those that were not logged are empty.

    Args:
        log_snr: (K - 1,) between the levels. r_bounds: log r at the ends of its classes.
        calibration: (K, bins, 3) data, samples and predictions. h: (K, 3) number, sum, squares.
        r_counts, h_counts: (K, classes). since: the first iteration that was added.
    """

    log_snr: np.ndarray
    r_bounds: np.ndarray
    calibration: np.ndarray
    h: np.ndarray
    r_counts: np.ndarray
    h_counts: np.ndarray
    since: int

    @property
    def errors(self) -> np.ndarray:
        """(K,) expected calibration error of r / (1 + r); nan of a level without samples."""
        data, samples, predicted = np.moveaxis(self.calibration, -1, 0)
        with np.errstate(invalid="ignore"):
            return np.abs(data - predicted).sum(1) / (data + samples).sum(1)

    @property
    def variances(self) -> np.ndarray:
        """(K,) Var h / (E h)^2."""
        number, total, squares = self.h.T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.maximum(squares * number / total**2 - 1, 0)

    def reliability(self, levels: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean prediction, share of data, and count of every bin that has any, of some levels."""
        data, samples, predicted = np.moveaxis(self.calibration[levels].sum(0), -1, 0)
        count = data + samples
        kept = count > 0
        number = count[kept]
        return predicted[kept] / number, data[kept] / number, number


def read_levels(history: History) -> Levels | None:
    """The tables at the end of a log; None where there are none."""
    rows = [row for row in history.rows if any(f"levels/{key}" in row for key in _KEYS)]
    rows = rows[-max(1, round(_SHARE * len(rows))) :]
    if not rows:
        return None
    last: dict[str, Any] = {}
    for row in rows:
        last |= {key: row[key] for key in ("levels/log_snr", "levels/r_bounds") if key in row}
    return Levels(
        np.array(last.get("levels/log_snr", ())),
        np.array(last.get("levels/r_bounds", ())),
        **{key: _added(rows, f"levels/{key}") for key in _KEYS},
        since=rows[0]["step"],
    )


def _added(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    tables = [np.array(row[key], dtype=np.float64) for row in rows if key in row]
    return np.nansum(tables, axis=0) if tables else np.empty(0)
