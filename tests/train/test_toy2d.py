"""The paper's Fig. 8 from its two recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stack.config.load import identity_changes, load_recipe
from stack.config.schema import DistillRecipe, Mixture2DTeacher
from stack.nets.toy import ring
from stack.report.figures import covered_modes
from stack.train.build_distill import build_distill
from stack.train.distill import DistillTask
from stack.util import keyed
from tests.parallel.rows import rows

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


def modes_of(recipe: DistillRecipe, task: DistillTask) -> tuple[int, int]:
    """How many modes the averaged student's samples cover, and how many there are."""
    teacher, positions = recipe.teacher, torch.arange(4000)
    assert isinstance(teacher, Mixture2DTeacher)
    [average] = task.averages.values()
    z = keyed.normal((2,), seed=recipe.seed, iteration=0, role="sample", positions=positions)
    with average.applied(), torch.no_grad():
        x = task.algorithm.student(z, positions, z[:, :0]).numpy()
    centres = ring(teacher.modes, teacher.radius)
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    real = (centres.repeat(800, 1) + teacher.std * noise).numpy()
    return covered_modes(x, real, centres.numpy(), 3 * teacher.std), teacher.modes


@pytest.mark.slow
@pytest.mark.parametrize("seed", rows((0, 1, 2), (1, 2)))
def test_forward_kl_recovers_the_modes_that_reverse_kl_loses(seed: int) -> None:
    fkl, rkl = (recipe_of(name, f"seed={seed}") for name in NAMES)
    found, modes = modes_of(rkl, train(rkl))
    assert found < modes
    assert modes_of(fkl, train(fkl)) == (modes, modes)


def test_the_two_recipes_differ_in_the_divergence_alone() -> None:
    fkl, rkl = map(recipe_of, NAMES)
    assert {field for field, _, _ in identity_changes(fkl, rkl)} == {"name", "divergence"}


@pytest.mark.parametrize("name", NAMES)
def test_both_start_as_the_same_skewed_gaussian_and_train(name: str) -> None:
    recipe = recipe_of(name, "iterations=4")
    found, modes = modes_of(recipe, train(recipe))
    assert found < modes
