"""``stack distill``: a one-step student from a many-step teacher."""

from __future__ import annotations

from stack.config.schema import DistillRecipe
from stack.parallel.collectives import ranks_of
from stack.train.build_distill import build_distill
from stack.train.build_run import Start, open_run, settle_fork, trainer_of


def distill(recipe: DistillRecipe, how: Start) -> str | None:
    """Train; returns the signal's name if one asked to stop (the state is then saved)."""
    with ranks_of(recipe.parallel.backend, timeout=recipe.parallel.timeout) as ranks:
        job = build_distill(recipe, ranks)
        how = settle_fork(recipe, how, ranks)
        folder = open_run(recipe, ranks, how)
        return trainer_of(recipe, job, folder, ranks, how).fit()
