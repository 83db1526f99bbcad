"""``build_distill`` from recipe to moving networks, a few iterations of every kind."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stack.config.load import load_recipe
from stack.config.schema import DistillRecipe
from stack.fdistill.divergence import DIVERGENCES
from stack.parallel.local import LocalWeights
from stack.train.build import Job
from stack.train.build_distill import build_distill
from stack.train.distill import DistillTask
from tests.pipeline import World, recipe_fields, write_recipe

STUDENT_KEYS = {
    "loss/gap",
    "loss/gan",
    "gap/mean",
    "grad/student",
    *(f"{name}/{part}" for name in ("r", "h") for part in ("p10", "p50", "p90")),
    "r/mean",
    "r/clipped",
    "h/variance",
}
CRITIC_KEYS = {
    "loss/fake",
    "loss/discriminator",
    "loss/r1",
    "discriminator/accuracy",
    "latent/drift",
    "similarity/real",
    "similarity/fake",
    "grad/fake",
    "grad/heads",
}
RATES = {"lr/student", "lr/fake", "lr/heads"}


def build(tmp_path: Path, fields: dict[str, Any], *overrides: str) -> Job:
    recipe = load_recipe(write_recipe(tmp_path, fields), overrides)
    assert isinstance(recipe, DistillRecipe)
    return build_distill(recipe)


def weights(task: DistillTask) -> dict[str, dict[str, Tensor]]:
    """A copy of every network's parameters, by network."""
    networks = {weights.name: weights.module for weights in task.weights}
    networks["teacher"] = task.algorithm.teacher
    return {
        name: {key: value.detach().clone() for key, value in network.named_parameters()}
        for name, network in networks.items()
    }


def moved(before: dict[str, dict[str, Tensor]], after: dict[str, dict[str, Tensor]]) -> set[str]:
    return {
        name
        for name, values in before.items()
        if any(not torch.equal(value, after[name][key]) for key, value in values.items())
    }


def iterate(job: Job, count: int) -> list[dict[str, float]]:
    """Rows of the first iterations, each of which must step."""
    rows = []
    for iteration in range(count):
        figures, stepped = job.task.iteration(iteration, job.source.take())
        assert stepped
        rows.append(job.task.summary(figures))
    return rows


RUNS = [
    *(
        [f"divergence={d}", f"alternation={a}"]
        for d, a in product(DIVERGENCES, ("joint", "exclusive"))
    ),
    *(
        [f"gan.features={f}", f"gan.weight={w}"]
        for f, w in product(("teacher", "fake", "fake_joint"), (0.01, 0))
    ),
    ["precision=bf16"],
    ["precision=bf16", "gan.features=fake_joint", "divergence=fkl"],
    ["guidance=1"],
    ["gan.resolutions=[4]"],
    ["gan.resolutions=[8]"],
    ["ratio.warmup=9"],
    ["ratio.ramp=9"],
    ["ratio.normalize_r=false", "ratio.normalize_h=false"],
    ["ema=0"],
]


@pytest.mark.parametrize("overrides", RUNS, ids=" ".join)
def test_run(tmp_path: Path, world: World, overrides: list[str]) -> None:
    """Who moves when, what is told, and that all of it is finite."""
    job = build(tmp_path, recipe_fields(world), *overrides)
    joint = "alternation=exclusive" not in overrides
    no_weights = {"divergence=reverse_kl", "ratio.warmup=9"} & set(overrides)
    for iteration in range(2):
        before = weights(job.task)
        figures, stepped = job.task.iteration(iteration, job.source.take())
        row = job.task.summary(figures)
        student = iteration % 2 == 1
        critics = joint or not student
        assert stepped
        assert moved(before, weights(job.task)) == {
            name
            for name, turn in (("student", student), ("fake", critics), ("heads", critics))
            if turn
        }
        tables = {key for key in row if key.startswith(("levels/", "h/variance/"))}
        assert bool(tables & {"levels/h", "levels/r_counts", "levels/h_counts"}) == student
        assert row.keys() - tables == RATES | (STUDENT_KEYS if student else set()) | (
            CRITIC_KEYS if critics else set()
        )
        assert all(math.isfinite(row[key]) for key in row.keys() - tables)
        if student:
            assert (row["h/variance"] == 0) == bool(no_weights)
    assert all(value.dtype is torch.float32 for value in weights(job.task)["student"].values())
    counters = job.task.counters()
    critic_steps = 2 if joint else 1
    assert counters["steps"] == {"student": 1, "fake": critic_steps, "heads": critic_steps}
    assert counters["averages"] == ({} if "ema=0" in overrides else {"ema_0.9": 1})


@pytest.mark.parametrize("source", ["teacher", "fake", "fake_joint"])
def test_only_fake_joint_trains_features_for_the_discriminator(
    tmp_path: Path, world: World, source: str
) -> None:
    """Whether the discriminator's weight in the fake score's gradient shows."""
    gradients = []
    for gamma in (0.0, 1000.0):
        fields = recipe_fields(world)
        fields["gan"] |= {"features": source, "r1_gamma": gamma, "r1_noise": 1.0}
        row = iterate(build(tmp_path, fields), 1)[0]
        gradients.append(row["grad/fake"])
    assert (gradients[0] == gradients[1]) == (source != "fake_joint")


def test_student_and_fake_start_as_the_teacher(tmp_path: Path, world: World) -> None:
    task = build(tmp_path, recipe_fields(world)).task
    assert isinstance(task, DistillTask)
    start = weights(task)
    for name in ("student", "fake"):
        assert start[name].keys() == start["teacher"].keys()
        assert all(torch.equal(start["teacher"][key], start[name][key]) for key in start[name])
    assert not any(p.requires_grad for p in task.algorithm.teacher.parameters())


@pytest.mark.parametrize("alternation", ["joint", "exclusive"])
def test_accumulation_changes_nothing_but_rounding(
    tmp_path: Path, world: World, alternation: str
) -> None:
    """1, 2 and 4 micro-batches; a large eps keeps Adam from magnifying rounding errors."""
    fields = recipe_fields(world, alternation=alternation)
    fields["optim"] = {name: {**adam, "eps": 1.0} for name, adam in fields["optim"].items()}
    runs = {}
    for count in (1, 2, 4):
        job = build(tmp_path, fields, f"parallel.accumulation={count}")
        runs[count] = iterate(job, 2), job.task.tensors()
    rows, tensors = runs[1]
    for other_rows, other in (runs[2], runs[4]):
        for row, expected in zip(other_rows, rows, strict=True):
            assert row.keys() == expected.keys()
            for name, value in expected.items():
                found, value = (np.array(v, dtype=float) for v in (row[name], value))
                # A sample on an edge of two classes may be counted in either.
                atol = 1.0 if name.endswith(("_counts", "/calibration")) else 1e-6
                atol = 1e-3 if name == "levels/h" else atol
                np.testing.assert_allclose(found, value, rtol=2e-3, atol=atol, err_msg=name)
        for name, value in tensors.items():
            assert torch.allclose(other[name], value, rtol=1e-3, atol=1e-6), name


def test_bf16_is_close_to_fp32_and_not_the_same(tmp_path: Path, world: World) -> None:
    rows = [
        iterate(build(tmp_path, recipe_fields(world), f"precision={precision}"), 1)[0]
        for precision in ("fp32", "bf16")
    ]
    for name in ("loss/fake", "loss/discriminator"):
        assert rows[0][name] != rows[1][name]
        assert rows[0][name] == pytest.approx(rows[1][name], rel=0.05)


def test_the_seed_is_all_that_chance_depends_on(tmp_path: Path, world: World) -> None:
    runs = []
    for seed in (0, 0, 1):
        torch.rand(seed + len(runs))  # the generator's state must not matter
        runs.append(iterate(build(tmp_path, recipe_fields(world), f"seed={seed}"), 2))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_every_trained_network_is_clipped(tmp_path: Path, world: World) -> None:
    """Not the student alone: the gradients that step are within each network's own limit."""
    limits = {"student": 1e-3, "fake": 2e-3, "heads": 3e-3}
    overrides = [f"optim.{name}.clip={limit}" for name, limit in limits.items()]
    job = build(tmp_path, recipe_fields(world, student_every=1), *overrides)
    assert isinstance(job.task, DistillTask)
    found = {}
    for held in job.task.weights:

        def step(held: LocalWeights = held) -> None:
            gradients = [p.grad for p in held.module.parameters() if p.grad is not None]
            found[held.name] = float(torch.cat([g.flatten() for g in gradients]).norm())

        held.step = step
    figures, _ = job.task.iteration(0, job.source.take())
    for name, limit in limits.items():
        assert float(figures[f"grad/{name}"]) > limit
        assert found[name] == pytest.approx(limit, rel=1e-2)
