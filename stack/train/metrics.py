"""The training log: metrics.jsonl and TensorBoard events in the run folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

_QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}


def summarize(
    figures: Mapping[str, Tensor], *, log_r_bounds: tuple[float, float]
) -> dict[str, float]:
    """Scalars of an iteration, and quantiles of its ratios and weights.

    Args:
        figures: scalars by name, and (B,) tensors ``log_r``, ``h``, ``gap``, ``t``.
        log_r_bounds: where log r is clipped, to count the clipped.
    """
    row = {name: float(value) for name, value in figures.items() if value.ndim == 0}
    if "h" in figures:
        log_r, h = figures["log_r"].double(), figures["h"].double()
        row |= _quantiles("r", log_r.exp()) | _quantiles("h", h)
        low, high = log_r_bounds
        clipped = (log_r <= low + 1e-6) | (log_r >= high - 1e-6)
        row["r/mean"] = float(log_r.exp().mean())
        row["r/clipped"] = float(clipped.double().mean())
        row["h/variance"] = float(h.var(correction=0) / h.mean() ** 2)
        row["gap/mean"] = float(figures["gap"].mean())
    return row


def _quantiles(name: str, values: Tensor) -> dict[str, float]:
    points = torch.tensor(list(_QUANTILES.values()), dtype=values.dtype, device=values.device)
    found = values.quantile(points).tolist()
    return {f"{name}/{key}": value for key, value in zip(_QUANTILES, found, strict=True)}


class MetricsLog:
    """Appends rows to metrics.jsonl and to TensorBoard.

    A resumed run goes on in the same file; rows of iterations that are done again stay, before
    a row ``{"event": "resume", "step": k}``.
    """

    def __init__(self, folder: Path, *, seconds: float = 0.0, silent: bool = False) -> None:
        """Args: seconds: training time before this start. silent: write nothing, on a rank that
        is not the first."""
        self.start = time.monotonic() - seconds
        self.file = (Path(os.devnull) if silent else folder / "metrics.jsonl").open("a")
        self.continued = not silent and self.file.tell() > 0
        self.board = None if silent else SummaryWriter(str(folder))

    @property
    def seconds(self) -> float:
        """Training time over all starts."""
        return time.monotonic() - self.start

    def event(self, name: str, step: int, **details: float | str) -> None:
        """Note that something happened to the run, and the Unix time (s) when: start, resume,
        stopped, failed (both with a reason) or finished."""
        clock: dict[str, float | str] = {"time": self.seconds, "wall": time.time()}
        self._append({"event": name, "step": step, **clock, **details})

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """One logged step."""
        self._append({"step": step, "time": round(self.seconds, 3)} | dict(values))
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush both files."""
        self.file.close()
        if self.board:
            self.board.close()

    def _append(self, row: Mapping[str, float | str]) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
