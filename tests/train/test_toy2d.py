"""The paper's Fig. 8 from its two recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stack.config.load import identity_changes, load_recipe
from stack.config.schema import DistillRecipe, Mixture2DTeacher
from stack.nets.toy import mode_coverage, ring
from stack.train.build import build_distill
from stack.train.distill import DistillTask
from stack.util import keyed

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ["toy2d_fkl", "toy2d_rkl"]


def recipe_of(name: str, *overrides: str) -> DistillRecipe:
    recipe = load_recipe(RECIPES / f"{name}.yaml", overrides)
    assert isinstance(recipe, DistillRecipe)
    return recipe


def train(recipe: DistillRecipe) -> DistillTask:
    job = build_distill(recipe)
    assert isinstance(job.task, DistillTask)
    for iteration in range(recipe.iterations):
        assert job.task.iteration(iteration, job.source.take())[1]
    return job.task


def coverage(recipe: DistillRecipe, task: DistillTask) -> float:
    """Share of the modes that the averaged student's samples cover."""
    teacher, positions = recipe.teacher, torch.arange(4000)
    assert isinstance(teacher, Mixture2DTeacher)
    assert task.average
    z = keyed.normal((2,), seed=recipe.seed, iteration=0, role="sample", positions=positions)
    with task.average.applied(), torch.no_grad():
        x = task.algorithm.student(z, positions, z[:, :0])
    return mode_coverage(x, ring(teacher.modes, teacher.radius), teacher.std)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_forward_kl_recovers_the_modes_that_reverse_kl_loses(seed: int) -> None:
    fkl, rkl = (recipe_of(name, f"seed={seed}") for name in NAMES)
    assert coverage(rkl, train(rkl)) < 1
    assert coverage(fkl, train(fkl)) == 1


def test_the_two_recipes_differ_in_the_divergence_alone() -> None:
    fkl, rkl = map(recipe_of, NAMES)
    assert {field for field, _, _ in identity_changes(fkl, rkl)} == {"name", "divergence"}


@pytest.mark.parametrize("name", NAMES)
def test_both_start_as_the_same_skewed_gaussian_and_train(name: str) -> None:
    recipe = recipe_of(name, "iterations=4")
    assert coverage(recipe, train(recipe)) < 1
