"""The distillation as a task: the algorithm, the student's average, its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

from torch import Tensor

from stack.fdistill.algorithm import Batch, FDistill, Figures
from stack.nets.ema import EMA
from stack.parallel.local import LocalWeights
from stack.train.metrics import summarize


@dataclass
class DistillTask:
    """What the trainer runs for ``stack distill``.

    Args:
        weights: student, fake score and heads. average: of the student, if there is one.
        draw: writes a picture of the student's samples: (iteration, folder).
    """

    name: str
    total: int
    algorithm: FDistill
    weights: Sequence[LocalWeights]
    average: EMA | None
    draw: Callable[[int, Path], None]

    @property
    def log_span(self) -> int:
        return 1 if self.algorithm.alternation == "joint" else 2

    def iteration(self, iteration: int, batches: Sequence[Batch]) -> tuple[Figures, bool]:
        figures, stepped = self.algorithm.iteration(iteration, batches)
        student_moved, _ = self.algorithm.turns(iteration)
        if self.average and student_moved and stepped:
            self.average.update()
        return figures, stepped

    def summary(self, figures: Figures) -> dict[str, float]:
        bounds = log(self.algorithm.r_min), log(self.algorithm.r_max)
        rates = {f"lr/{weights.name}": weights.lr for weights in self.weights}
        return summarize(figures, log_r_bounds=bounds) | rates

    def sample(self, iteration: int, folder: Path) -> None:
        """A picture of the averaged student, where there is an average."""
        with self.average.applied() if self.average else nullcontext():
            self.draw(iteration, folder)

    def tensors(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for weights in self.weights:
            state |= weights.tensors()
        if self.average:
            state |= {f"ema.{name}": value for name, value in self.average.tensors().items()}
        ratio = self.algorithm.ratio.normalizer.state_dict()
        return state | {f"ratio.{name}": value for name, value in ratio.items()}

    def counters(self) -> dict[str, Any]:
        steps = {weights.name: weights.steps for weights in self.weights}
        return {"steps": steps, "ema": self.average.updates if self.average else 0}

    def load_counters(self, counters: dict[str, Any]) -> None:
        for weights in self.weights:
            weights.steps = counters["steps"][weights.name]
        if self.average:
            self.average.updates = counters["ema"]
