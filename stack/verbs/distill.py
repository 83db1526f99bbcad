"""``stack distill``: a one-step student from a many-step teacher."""

from __future__ import annotations

from stack.config.schema import DistillRecipe
from stack.parallel.collectives import ranks_of
from stack.train.build import build_distill
from stack.train.build_run import open_run, trainer_of


def distill(recipe: DistillRecipe, *, resume: bool, overwrite: bool) -> str | None:
    """Train; returns the signal's name if one asked to stop (the state is then saved)."""
    with ranks_of(recipe.parallel.backend) as ranks:
        job = build_distill(recipe, ranks)
        folder = open_run(recipe, ranks, resume=resume, overwrite=overwrite)
        return trainer_of(recipe, job, folder, ranks).fit()
