"""The two-dimensional runs that ``stack figures`` makes where it is given none."""

from __future__ import annotations

from pathlib import Path

import stack
from stack.config.load import load_recipe
from stack.config.schema import DistillRecipe
from stack.train.build_run import Start
from stack.util.errors import UserError
from stack.verbs.distill import distill
from stack.verbs.figures_runs import Run

_RECIPES = Path(stack.__file__).parents[1] / "recipes"
_ALWAYS = (
    "evaluation.quick_every=60",
    "checkpoint.keep_best=0",
    "checkpoint.every=600",
    "device=cpu",
)
_PLAIN = ("ratio.normalize_r=false", "ratio.normalize_h=false")
TOYS: dict[str, tuple[str, ...]] = {
    "toy_fkl": (),
    "toy_fkl_seed1": ("seed=1",),
    "toy_fkl_seed2": ("seed=2",),
    "toy_fkl_plain": _PLAIN,
    "toy_fkl_plain_seed1": (*_PLAIN, "seed=1"),
    "toy_fkl_plain_seed2": (*_PLAIN, "seed=2"),
    "toy_rkl": ("divergence=reverse_kl",),
    "toy_js": ("divergence=jensen_shannon",),
    "toy_fkl_fake": ("gan.features=fake",),
    "toy_fkl_fake_joint": ("gan.features=fake_joint",),
}
"""Runs by name: recipes/toy2d_fkl.yaml with these overrides."""


def toy_run(name: str, folder: Path, overrides: tuple[str, ...] = ()) -> Run:
    """One of TOYS in ``folder``, trained if it is not there yet; half a minute on a laptop.

    Raises:
        UserError: the project's recipes are not beside its code; or training was stopped.
    """
    source = _RECIPES / "toy2d_fkl.yaml"
    if not source.is_file():
        raise UserError(f"{source}: no such recipe; install from a clone, or give runs")
    out = folder / name
    given = (*_ALWAYS, *TOYS[name], *overrides, f"name={name}", f"out={out}")
    recipe = load_recipe(source, given)
    assert isinstance(recipe, DistillRecipe)
    if signal := distill(recipe, Start(resume=True)):
        raise UserError(f"{out}: stopped by {signal}; the same command goes on")
    return Run.open(out)
