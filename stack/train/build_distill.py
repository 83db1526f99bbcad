"""Composition of a distillation: the algorithm around the networks of each kind of teacher."""

from __future__ import annotations

import torch

from stack.config.schema import DistillRecipe
from stack.parallel.collectives import ALONE, Ranks
from stack.train.build import Job, layout_of
from stack.train.build_mixture import build_mixture
from stack.train.build_sd import build_sd
from stack.util.errors import UserError


def build_distill(recipe: DistillRecipe, ranks: Ranks = ALONE) -> Job:
    """Everything ``stack distill`` trains."""
    torch.manual_seed(recipe.seed)
    parts = ranks.world_size * recipe.parallel.accumulation
    if recipe.batch_size % parts:
        raise UserError(
            f"parallel.accumulation: {ranks.world_size} ranks of {recipe.parallel.accumulation} "
            f"micro-batches do not divide the global batch {recipe.batch_size}"
        )
    builders = {"sd": build_sd, "mixture2d": build_mixture}
    return builders[recipe.teacher.kind](recipe, layout_of(recipe, ranks))
