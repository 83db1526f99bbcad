"""Composition of a distillation: the algorithm around the networks of each kind of teacher."""

from __future__ import annotations

import torch

from stack.config.schema import DistillRecipe
from stack.parallel.collectives import ALONE, Ranks
from stack.train.build import Job, layout_of, micro_batches_of
from stack.train.build_edm import build_edm
from stack.train.build_mixture import build_mixture
from stack.train.build_sd import build_sd


def build_distill(recipe: DistillRecipe, ranks: Ranks = ALONE) -> Job:
    """Everything ``stack distill`` trains."""
    torch.manual_seed(recipe.seed)
    builders = {"sd": build_sd, "edm": build_edm, "mixture2d": build_mixture}
    layout = layout_of(recipe, ranks, micro_batches=micro_batches_of(recipe, ranks))
    return builders[recipe.teacher.kind](recipe, layout)
