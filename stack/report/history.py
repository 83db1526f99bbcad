"""A run's log as curves: metrics.jsonl with the rows of abandoned attempts taken out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stack.util.errors import UserError


@dataclass(frozen=True)
class Curve:
    """Finite values against iterations, float64 arrays of one length, iterations ascending."""

    steps: np.ndarray
    values: np.ndarray

    def __bool__(self) -> bool:
        return len(self.steps) > 0


@dataclass(frozen=True)
class History:
    """What a run logged.

    Args:
        rows: one per logged iteration, ascending, with all that was logged of it.
        restarts: the iterations that the run was resumed after.
        torn: lines that could not be read, cut short when a machine went down.
    """

    rows: list[dict[str, Any]]
    restarts: list[int] = field(default_factory=list)
    torn: int = 0

    def keys(self, prefix: str = "") -> list[str]:
        """Every figure logged under a prefix, in the order of first mention."""
        seen = dict.fromkeys(key for row in self.rows for key in row)
        return [key for key in seen if key.startswith(prefix)]

    def curve(self, key: str) -> Curve:
        """One figure; rows that lack it, or where it is not finite, are left out."""
        return self.curves(key)[0]

    def curves(self, *keys: str) -> list[Curve]:
        """Several figures over the rows that hold finite values of all of them."""
        found = [[row["step"], *(row.get(key, np.nan) for key in keys)] for row in self.rows]
        table = np.array(found, dtype=np.float64)
        table = table[np.isfinite(table).all(1)]
        return [Curve(table[:, 0], table[:, i + 1]) for i in range(len(keys))]

    def last(self, key: str) -> float | None:
        """The newest value of a figure."""
        curve = self.curve(key)
        return float(curve.values[-1]) if curve else None

    def late(self, key: str, share: float) -> float | None:
        """A figure's mean over the last rows that hold it: this share of them, above 0 and at most
        1, and one at least."""
        values = self.curve(key).values
        return float(values[-max(1, round(share * len(values))) :].mean()) if len(values) else None


def gone_back(row: Mapping[str, Any], latest: int) -> int | None:
    """The iteration that a run went on from, where a line of its log says that this is behind the
    ``latest`` one: what was logged of later ones is to be forgotten. Else None."""
    if row.get("event") == "resume":
        return row["step"]
    return row["step"] - 1 if "event" not in row and row["step"] < latest else None


def read_history(path: Path) -> History:
    """Read metrics.jsonl.

    A row ``{"event": "resume", "step": k}``, or an iteration lower than the one before, says that
    the run went on from an earlier state: the rows after that state are dropped.

    Raises:
        UserError: no such file, or nothing in it can be read.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; give a run folder that training has written"
        ) from None
    rows: list[dict[str, Any]] = []
    restarts: list[int] = []
    torn = 0
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            torn += 1
            continue
        state = gone_back(row, rows[-1]["step"]) if rows else None
        if state is not None:
            restarts.append(state)
            rows = [kept for kept in rows if kept["step"] <= state]
        if "event" in row:
            continue
        if rows and rows[-1]["step"] == row["step"]:
            rows[-1] |= row  # Training's figures, then those of the quick evaluation.
        else:
            rows.append(row)
    if not rows:
        raise UserError(f"{path}: nothing was logged yet ({torn} lines unreadable); train first")
    return History(rows, restarts, torn)
