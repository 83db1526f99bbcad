"""``stack distill``: a one-step student from a many-step teacher."""

from __future__ import annotations

from stack.config.schema import DistillRecipe
from stack.train.build import build_distill
from stack.train.build_run import open_run, trainer_of


def distill(recipe: DistillRecipe, *, resume: bool, overwrite: bool) -> str | None:
    """Train; returns the signal's name if one asked to stop (the state is then saved)."""
    job = build_distill(recipe)
    folder = open_run(recipe, resume=resume, overwrite=overwrite)
    return trainer_of(recipe, job, folder).fit()
