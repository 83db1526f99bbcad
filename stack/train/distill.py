"""The distillation as a task: the algorithm, the student's average, its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

from torch import Tensor

from stack.fdistill.algorithm import Batch, FDistill, Figures
from stack.fdistill.calibration import NoiseLevels
from stack.nets.ema import EMA
from stack.parallel.local import LocalWeights
from stack.train.metrics import summarize
from stack.train.task import Task


@dataclass
class DistillTask(Task):
    """What the trainer runs for ``stack distill``.

    Args:
        weights: student, fake score and heads. averages: of the student, by name.
        draw: writes a picture of the student's samples: (iteration, folder).
        measure: quick figures of the student's samples. start: fills the weights of a run that
            starts.
    """

    name: str
    total: int
    algorithm: FDistill
    weights: Sequence[LocalWeights]
    averages: Mapping[str, EMA]
    draw: Callable[[int, Path], None]
    measure: Callable[[], Mapping[str, float]]
    start: Callable[[Sequence[LocalWeights]], None]

    @property
    def log_span(self) -> int:
        return 1 if self.algorithm.alternation == "joint" else 2

    def begin(self) -> None:
        self.start(self.weights)
        for average in self.averages.values():
            average.restart()

    def iteration(self, iteration: int, batches: Sequence[Batch]) -> tuple[Figures, bool]:
        figures, stepped = self.algorithm.iteration(iteration, batches)
        student_moved, _ = self.algorithm.turns(iteration)
        for average in self.averages.values() if student_moved and stepped else ():
            average.update()
        return figures, stepped

    def summary(self, figures: Figures) -> dict[str, Any]:
        bounds = log(self.algorithm.r_min), log(self.algorithm.r_max)
        rates = {f"lr/{weights.name}": weights.lr for weights in self.weights}
        edges = self.algorithm.ratio.normalizer.edges.cpu()
        levels = NoiseLevels(edges, self.algorithm.teacher.schedule.log_snr)
        return summarize(figures, log_r_bounds=bounds, levels=levels) | rates

    def sample(self, iteration: int, folder: Path) -> None:
        """A picture of the averaged student, where there is an average; of the first of several."""
        with self._averaged():
            self.draw(iteration, folder)

    def evaluate(self) -> Mapping[str, float]:
        """Of the averaged student, where there is an average."""
        with self._averaged():
            return self.measure()

    def _averaged(self) -> AbstractContextManager[None]:
        first = next(iter(self.averages.values()), None)
        return first.applied() if first else nullcontext()

    def tensors(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for weights in self.weights:
            state |= weights.tensors()
        for name, average in self.averages.items():
            state |= {f"{name}.{key}": value for key, value in average.tensors().items()}
        ratio = self.algorithm.ratio.normalizer.state_dict()
        return state | {f"ratio.{name}": value for name, value in ratio.items()}

    def objects(self) -> dict[str, Any]:
        return {path: o for weights in self.weights for path, o in weights.objects().items()}

    def load_objects(self, folder: Path) -> None:
        for weights in self.weights:
            weights.load_objects(folder)

    def counters(self) -> dict[str, Any]:
        steps = {weights.name: weights.steps for weights in self.weights}
        updates = {name: average.updates for name, average in self.averages.items()}
        return {"steps": steps, "averages": updates}

    def load_counters(self, counters: dict[str, Any]) -> None:
        for weights in self.weights:
            weights.steps = counters["steps"][weights.name]
        for name, average in self.averages.items():
            average.updates = counters["averages"][name]
