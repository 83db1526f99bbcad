"""Composition of the distillation of a two-dimensional mixture (paper, Fig. 2 and 8)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stack.config.schema import DistillRecipe, Mixture2DTeacher
from stack.diffusion.schedule import DiscreteSchedule
from stack.evaluate.frechet import Moments, frechet_distance
from stack.nets.heads import MultiHead, VectorHead
from stack.nets.toy import (
    MixtureDenoiser,
    SkewedDenoiser,
    SkewedStudent,
    ring,
)
from stack.parallel.mesh import Layout
from stack.train.build import Job
from stack.train.build_algorithm import Networks, assemble
from stack.train.sources import KeyedSource
from stack.train.task import SCORE
from stack.util import keyed

_DRAWN_POINTS = 2000
"""Samples in a picture of the two-dimensional example."""
_REACH = 3.0
"""Standard deviations from a mode's centre within which a sample belongs to it."""


def build_mixture(recipe: DistillRecipe, layout: Layout) -> Job:
    """The two-dimensional example, with its analytic teacher."""
    assert isinstance(recipe.teacher, Mixture2DTeacher)
    given, schedule = recipe.teacher, DiscreteSchedule.scaled_linear()
    device, ranks = layout.device, layout.ranks
    centres = ring(given.modes, given.radius)
    teacher = MixtureDenoiser(schedule, centres, given.std).to(device)
    start = (schedule, given.start, given.start_std)
    student = SkewedStudent(*start, given.student_width).to(device)
    fake = SkewedDenoiser(*start, given.width).to(device)
    extractor = teacher if recipe.gan.features == "teacher" else fake
    heads = MultiHead([VectorHead(extractor.feature_channels, recipe.gan.width)]).to(device)

    def data(iteration: int, positions: Tensor) -> Tensor:
        return teacher.sample(positions, seed=recipe.seed, iteration=iteration)

    everyone = torch.arange(recipe.batch_size, device=device)
    source = KeyedSource(
        data,
        samples=recipe.batch_size,
        positions=everyone.chunk(ranks.world_size)[ranks.rank],
        accumulation=layout.micro_batches,
    )

    shown = torch.arange(_DRAWN_POINTS, device=device)
    z = keyed.normal((2,), seed=recipe.seed, iteration=0, role="sample", positions=shown)
    stages: dict[int, np.ndarray] = {}

    @torch.no_grad()
    def points() -> np.ndarray:
        last = torch.full_like(shown, schedule.steps - 1)
        return student(z, last, z[:, :0]).cpu().numpy()

    def measure() -> dict[str, float]:
        """Frechet distance between the student's points and as many of the data."""
        samples = Moments(2).update(torch.from_numpy(points()))
        return {SCORE: frechet_distance(samples, Moments(2).update(data(0, shown).cpu()))}

    stages[0] = points()

    def draw(iteration: int, out: Path) -> None:
        """From the start to here, beside the data; a resumed run draws what it has seen."""
        from stack.report.figures import scatter_modes

        stages[iteration] = points()
        if not ranks.first:
            return
        real, reach = data(0, shown).cpu().numpy(), _REACH * given.std
        rows: dict[str, dict[int, np.ndarray]] = {recipe.divergence: stages}
        scatter_modes(out / "modes.png", real, rows, centres.numpy(), reach=reach)

    networks = Networks(student, fake, teacher, heads)
    return Job(assemble(recipe, layout, networks, draw, measure), source)
