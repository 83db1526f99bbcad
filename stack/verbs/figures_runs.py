"""What ``stack figures`` asks of run folders: their recipes, logs, networks and pictures."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stack.checkpoint.read import read_tensors
from stack.checkpoint.verify import checkpoint_of
from stack.config.load import stored_recipe
from stack.config.schema import DistillRecipe, Mixture2DTeacher
from stack.config.sections import Parallel
from stack.diffusion.schedule import add_noise
from stack.fdistill.algorithm import FDistill, Noise
from stack.fdistill.divergence import DIVERGENCES
from stack.fdistill.ratio import unit_mean
from stack.nets.toy import MixtureDenoiser
from stack.report.canvas import DIVERGENCES as TITLES
from stack.report.compare import told_apart
from stack.report.figures_runs import Field, Samples
from stack.report.history import History, read_history
from stack.train.build import Job
from stack.train.build_distill import build_distill
from stack.train.distill import DistillTask
from stack.util.errors import UserError

_GRID = 160
"""Points of a map along each side."""
_TOGETHER = 64
"""Samples that go through the networks at once, of pictures."""


@dataclass(frozen=True)
class Run:
    """A folder of ``stack distill``."""

    folder: Path
    recipe: DistillRecipe

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Raises: UserError: not such a run's folder."""
        recipe = stored_recipe(folder)
        if not isinstance(recipe, DistillRecipe):
            raise UserError(f"{folder}: job: a run of stack {recipe.job}; give runs of distill")
        return cls(folder, recipe)

    @property
    def flat(self) -> bool:
        """Whether its samples are points of the plane."""
        return isinstance(self.recipe.teacher, Mixture2DTeacher)

    @property
    def divergence(self) -> str:
        """What readers call it."""
        return TITLES[self.recipe.divergence]

    @cached_property
    def history(self) -> History:
        return read_history(self.folder / "metrics.jsonl")

    def stages(self) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Data, and the student's points by iteration, as the run drew them (samples/modes.csv)."""
        path = self.folder / "samples" / "modes.csv"
        if not path.is_file():
            raise UserError(f"{path}: no such file; set log.sample_every and train again")
        points: dict[str, list[tuple[float, float]]] = {}
        with path.open() as file:
            for row in csv.DictReader(file):
                points.setdefault(row["iteration"], []).append((float(row["x"]), float(row["y"])))
        real = np.array(points.pop(""))
        return real, {int(step): np.array(xy) for step, xy in points.items()}


def alike(runs: Iterable[Run], differ: Callable[[Run], Any]) -> list[Run]:
    """The largest group of runs with one teacher in which ``differ`` takes two values or more."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.recipe.teacher.model_dump_json(), []).append(run)
    usable = [group for group in groups.values() if len({differ(run) for run in group}) > 1]
    return max(usable, key=len, default=[])


def by_name(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs, each given once, by their names; where two are equal, by folders or paths."""
    names = told_apart([(run.recipe.name, run.folder) for run in runs])
    return dict(zip(names, runs, strict=True))


def labelled(runs: Sequence[Run], label: Callable[[Run], str]) -> dict[str, Run]:
    """Runs by what tells them apart; their names are added where that is not enough."""
    labels = [label(run) for run in runs]
    return {
        of if labels.count(of) == 1 else f"{of} ({name})": run
        for of, (name, run) in zip(labels, by_name(runs).items(), strict=True)
    }


def seeded(runs: Sequence[Run], label: Callable[[Run], str]) -> dict[str, dict[str, Run]]:
    """Lines of a figure: what tells runs apart -> name -> run. Runs of one line differ in nothing
    but their seed; where that is not so, the name of the first is added."""
    groups: dict[tuple[str, str], dict[str, Run]] = {}
    for name, run in by_name(runs).items():
        alike = run.recipe.model_copy(update={"seed": 0, "name": "", "out": ""})
        groups.setdefault((label(run), alike.model_dump_json()), {})[name] = run
    labels = [of for of, _ in groups]
    return {
        of if labels.count(of) == 1 else f"{of} ({next(iter(group))})": group
        for (of, _), group in groups.items()
    }


def restored(run: Run) -> tuple[FDistill, Job]:
    """The algorithm with the networks of the newest checkpoint, in this process alone."""
    parallel = Parallel() if run.flat else Parallel(micro_batch=_TOGETHER)
    quiet = run.recipe.evaluation.model_copy(update={"quick_every": 0})
    newest = checkpoint_of(run.folder)
    changed = {"parallel": parallel, "evaluation": quiet, "init_from": str(newest)}
    job = build_distill(run.recipe.model_copy(update=changed))
    assert isinstance(job.task, DistillTask)
    job.task.begin()
    statistics = read_tensors(newest, "ratio.")
    algorithm = job.task.algorithm
    normalizer = algorithm.ratio.normalizer
    device = normalizer.sums.device
    normalizer.load_state_dict({name: value.to(device) for name, value in statistics.items()})
    return algorithm, job


def weigh(algorithm: FDistill, divergence: str, log_r: Tensor, t: Tensor) -> Tensor:
    """h of clipped log ratios (B,), r normalised as the run does; its mean is not."""
    if algorithm.ratio.normalize_r:
        log_snr = algorithm.teacher.schedule.log_snr(t)
        log_r = algorithm.ratio.normalizer.normalize_log(log_r, log_snr)
    return DIVERGENCES[divergence].h_from_log(log_r)


@torch.no_grad()
def samples_of(run: Run, count: int) -> Samples:
    """Score difference, h, t and log r of ``count`` fresh student samples (Fig. 5)."""
    algorithm, job = restored(run)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    iteration = run.recipe.iterations
    while sum(len(row[0]) for row in rows) < count:
        for batch in job.source.take():
            noise = Noise(run.recipe.seed, iteration, batch.positions)
            x = algorithm.generate(batch, noise)
            ones = torch.ones_like(batch.positions, dtype=torch.float32)
            _, told = algorithm.student_loss(x, batch, noise, ones)
            rows.append((told["gap"].cpu(), told["log_r"].cpu(), told["t"].cpu()))
        iteration += 1
    gap, log_r, t = (torch.cat(part)[:count] for part in zip(*rows, strict=True))
    device = algorithm.ratio.normalizer.sums.device
    h = weigh(algorithm, run.recipe.divergence, log_r.to(device), t.to(device)).cpu()
    return Samples(gap.numpy(), unit_mean(h).numpy(), t.numpy(), log_r.numpy())


@torch.no_grad()
def plane_of(run: Run, divergence: str = "forward_kl") -> Field:
    """Score difference and h on a grid of diffused points, at the middle of the run's times."""
    algorithm, job = restored(run)
    teacher, schedule = algorithm.teacher, algorithm.teacher.schedule
    assert isinstance(teacher, MixtureDenoiser)
    time = sum(run.recipe.times.score) // 2
    (batch,) = job.source.take()
    noise = Noise(run.recipe.seed, run.recipe.iterations, batch.positions)
    at = torch.full_like(batch.positions, time)
    generated = algorithm.generate(batch, noise)
    student = add_noise(generated, noise.normal("map", batch.x0), at, schedule)
    real = add_noise(batch.x0, noise.normal("map/real", batch.x0), at, schedule)
    reach = 1.25 * float(torch.cat((student, real)).abs().quantile(0.998))
    axis = torch.linspace(-reach, reach, _GRID)
    points = torch.cartesian_prod(axis, axis).flip(1)  # Rows along y.
    t = torch.full((len(points),), time)
    alpha, sigma = schedule.alpha(t[:1]), schedule.sigma(t[:1])
    nothing = points[:, :0]
    gap = teacher(points, t, nothing) - algorithm.fake(points, t, nothing)
    h = _weights_at(algorithm, points, t, divergence)
    mean = _weights_at(algorithm, student, at, divergence).mean()
    variance = (alpha * teacher.std) ** 2 + sigma**2
    density, own, difference, weight = (
        plane.view(_GRID, _GRID).numpy()
        for plane in (
            _mixture(points, alpha * teacher.centres, variance),
            _mixture(points, alpha * generated, sigma**2),
            (alpha / sigma**2 * gap).norm(dim=1),
            h / mean,
        )
    )
    return Field(
        axis.numpy(),
        axis.numpy(),
        density,
        own,
        difference,
        weight,
        samples=student.numpy(),
        weighting=f"{TITLES[divergence]}, mean 1",
        level=f"{run.folder.name}, iteration {_steps(run):,}, noise σ = {float(sigma):.2f}",
    )


def _mixture(points: Tensor, centres: Tensor, variance: Tensor) -> Tensor:
    """(N,) density of equal Gaussians about centres (K, 2), up to a factor."""
    squares = torch.cdist(points, centres).square()
    return (-squares / (2 * variance)).exp().mean(1)


def _weights_at(algorithm: FDistill, x_t: Tensor, t: Tensor, divergence: str) -> Tensor:
    from_teacher = algorithm.feature_source == "teacher"
    extractor = algorithm.teacher if from_teacher else algorithm.fake
    logits = algorithm.heads(extractor.features(x_t, t, x_t[:, :0]))
    return weigh(algorithm, divergence, algorithm.log_ratio(logits), t)


def _steps(run: Run) -> int:
    """Iterations of the newest checkpoint."""
    return int(checkpoint_of(run.folder).name.removeprefix("step-"))
