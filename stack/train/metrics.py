"""The training log: metrics.jsonl and TensorBoard events in the run folder.

Numbers go into both. Tables per noise level (keys levels/...) are lists in metrics.jsonl alone,
each of one iteration; the report adds them up over rows.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from stack.fdistill.calibration import NoiseLevels, Reliability, similarity
from stack.report.alerts import Watch
from stack.report.journal import read_rows

logger = logging.getLogger(__name__)

_QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}
H_EDGES = tuple(2.0 ** (power + 0.5) for power in range(-6, 6))
"""Between the classes of h in a histogram, the first and the last of which are open; h = 1 is in
the middle of one."""
R_CLASSES = 12
"""Equal classes of log r between its bounds in a histogram."""


def summarize(
    figures: Mapping[str, Tensor],
    *,
    log_r_bounds: tuple[float, float],
    levels: NoiseLevels | None = None,
) -> dict[str, Any]:
    """Scalars of an iteration, quantiles of its ratios and weights, and tables per noise level.

    Args:
        figures: scalars by name, and (B,) tensors ``log_r``, ``h``, ``gap``, ``t`` of a step of
            the student, and those of :func:`critic_figures` of a step of the critics.
        log_r_bounds: where log r is clipped, to count the clipped.
    """
    row: dict[str, Any] = {name: float(value) for name, value in figures.items() if value.ndim == 0}
    if "h" in figures:
        log_r, h = figures["log_r"].double(), figures["h"].double()
        row |= _quantiles("r", log_r.exp()) | _quantiles("h", h)
        low, high = log_r_bounds
        clipped = (log_r <= low + 1e-6) | (log_r >= high - 1e-6)
        row["r/mean"] = float(log_r.exp().mean())
        row["r/clipped"] = float(clipped.double().mean())
        row["h/variance"] = float(h.var(correction=0) / h.mean() ** 2)
        row["gap/mean"] = float(figures["gap"].mean())
        if levels:
            row |= _weights_by_level(log_r, h, levels.of(figures["t"]).cpu(), levels, log_r_bounds)
    if "logit/real" in figures and levels:
        level = levels.of(figures["t/gan"])
        counts = Reliability(len(levels)).update(
            figures["logit/real"], figures["logit/fake"], level
        )
        row["levels/calibration"] = _rounded(counts.table)
    if "latent/fake" in figures:
        row["latent/drift"] = drift(figures["latent/fake"], figures["latent/real"])
        centre = figures["thumbnail/real"].mean(0)
        for side in ("fake", "real"):
            row[f"similarity/{side}"] = similarity(figures[f"thumbnail/{side}"], centre)
    return row


def drift(fake: Tensor, real: Tensor) -> float:
    """How far the samples' mean is from the data's, in the latter's standard deviations: root
    mean square over channels of per-sample channel means (B, C)."""
    fake, real = fake.double(), real.double()
    spread = real.std(0, correction=0).clamp_min(1e-6)
    return float(((fake.mean(0) - real.mean(0)) / spread).square().mean().sqrt())


def _weights_by_level(
    log_r: Tensor,
    h: Tensor,
    level: Tensor,
    levels: NoiseLevels,
    bounds: tuple[float, float],
) -> dict[str, Any]:
    """Normalised variance of h per level, and tables of which rows can be added up: number, sum
    and sum of squares of h; counts of log r and of h by class."""
    count, log_r, h = len(levels), log_r.cpu(), h.cpu()
    moments = torch.zeros(count, 3, dtype=torch.float64)
    moments.index_add_(0, level, torch.stack((torch.ones_like(h), h, h.square()), dim=1))
    n, total, squares = moments.unbind(1)
    variance = squares * n / total.square() - 1
    low, high = bounds
    by_r = ((log_r - low) / (high - low) * R_CLASSES).long().clamp(0, R_CLASSES - 1)
    by_h = torch.bucketize(h, torch.tensor(H_EDGES, dtype=h.dtype), right=True)
    return {
        **{f"h/variance/{i}": float(variance[i].clamp_min(0)) for i in range(count) if n[i] > 1},
        "levels/log_snr": _rounded(levels.edges.cpu()),
        "levels/h": _rounded(moments),
        "levels/r_counts": _counts(level, by_r, count, R_CLASSES),
        "levels/h_counts": _counts(level, by_h, count, len(H_EDGES) + 1),
        "levels/r_bounds": [round(low, 6), round(high, 6)],
    }


def _counts(level: Tensor, column: Tensor, levels: int, columns: int) -> list[list[int]]:
    found = torch.bincount(level * columns + column, minlength=levels * columns)
    return found.view(levels, columns).tolist()


def _rounded(table: Tensor) -> list[Any]:
    """Nested lists with four decimals, whole numbers without any, None for what is not finite."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if not isfinite(value):
            return None
        return int(value) if value == int(value) else round(value, 4)

    return plain(table.double().tolist())


def _quantiles(name: str, values: Tensor) -> dict[str, float]:
    points = torch.tensor(list(_QUANTILES.values()), dtype=values.dtype, device=values.device)
    found = values.quantile(points).tolist()
    return {f"{name}/{key}": value for key, value in zip(_QUANTILES, found, strict=True)}


class MetricsLog:
    """Appends rows to metrics.jsonl and to TensorBoard.

    A resumed run goes on in the same file; rows of iterations that are done again stay, before
    a row ``{"event": "resume", "step": k}``.
    """

    def __init__(
        self, folder: Path, *, step: int = 0, seconds: float = 0.0, silent: bool = False
    ) -> None:
        """Args: step, seconds: iterations and training time before this start. silent: write
        nothing, on a rank that is not the first."""
        self.start = time.monotonic() - seconds
        path = Path(os.devnull) if silent else folder / "metrics.jsonl"
        self.file = path.open("a")
        self.continued = not silent and self.file.tell() > 0
        self.board = None if silent else SummaryWriter(str(folder))
        self.watch = Watch()
        if self.continued:
            self.watch.recall(read_rows(path, tables=False), step)

    @property
    def seconds(self) -> float:
        """Training time over all starts."""
        return time.monotonic() - self.start

    def event(self, name: str, step: int, **details: float | str) -> None:
        """Note that something happened to the run, and the Unix time (s) when: start, resume,
        stopped, failed (both with a reason), finished, or an alert."""
        clock: dict[str, float | str] = {"time": self.seconds, "wall": time.time()}
        self._append({"event": name, "step": step, **clock, **details})

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        """One logged step: numbers, and tables as lists."""
        self._append({"step": step, "time": round(self.seconds, 3)} | dict(values))
        if self.board is None:
            return
        numbers = {name: v for name, v in values.items() if not isinstance(v, list)}
        for name, value in numbers.items():
            self.board.add_scalar(name, value, step)
        for sign, words in self.watch.look(step, numbers):
            self.event("alert", step, sign=sign, reason=words)
            logger.warning("iteration %d: %s: %s", step, sign, words)

    def close(self) -> None:
        """Flush both files."""
        self.file.close()
        if self.board:
            self.board.close()

    def _append(self, row: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
