"""Whole runs with 8-bit Adam, by bitsandbytes and by torchao."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.rows import rows
from tests.parallel.test_backends import differences, figures, objects
from tests.pipeline import (
    World,
    make_teacher,
    metrics_of,
    recipe_fields,
    run_stack,
    same_tensors,
    state_of,
    write_recipe,
)

pytestmark = pytest.mark.slow

ITERATIONS, HALF = 4, 2
ALONE = {"backend": "none"}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    # name: kind of Adam, the recipe's section parallel
    "none": ("adamw8bit", ALONE),
    "paged": ("paged_adamw8bit", ALONE),  # Without a GPU bitsandbytes warns, and pages nothing.
    "ddp": ("adamw8bit", {"backend": "ddp", "processes": 2}),
    "zero1": ("adamw8bit", {"backend": "zero1", "processes": 2}),
    "zero2": ("adamw8bit", {"backend": "zero2", "processes": 2}),
    "zero3": ("adamw8bit", {"backend": "zero3", "processes": 2}),
    "fsdp": ("adamw8bit", {"backend": "fsdp", "processes": 2}),
}
RARE = {"none", "ddp", "zero1", "zero2"}
"""Their optimizer is that of "paged", which has no pages on a CPU, or zero3's."""


@pytest.fixture(scope="module")
def wide(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A UNet with large weights; the moments of those below 4096 elements stay float32."""
    teacher = tmp_path_factory.mktemp("wide") / "teacher"
    make_teacher(teacher, channels=(16, 64))
    return World(teacher, world.shards, world.data)


def ranks_of(parallel: dict[str, Any]) -> int:
    return parallel.get("processes", 1)


def train(world: World, folder: Path, kind: str, parallel: dict[str, Any]) -> Path:
    adam = {"kind": kind, "lr": 1e-3, "betas": [0.0, 0.999], "warmup": 2}
    fields = recipe_fields(
        world,
        iterations=ITERATIONS,
        checkpoint={"every": HALF, "keep_every": HALF},
        optim={"student": adam, "fake": adam, "heads": adam},
        parallel=parallel,
    )
    done = run_stack("distill", str(write_recipe(folder, fields)), ranks=ranks_of(parallel))
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def full(wide: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with moments in float32."""
    return train(wide, tmp_path_factory.mktemp("full"), "adamw", ALONE)


def checkpoint_bytes(run: Path) -> int:
    folder = run / "checkpoints" / f"step-{ITERATIONS:07d}"
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def resume(run: Path, half: Path, ranks: int) -> None:
    """Go on in a copy of the run that has the first half alone."""
    shutil.copytree(run, half)
    shutil.rmtree(half / "checkpoints" / f"step-{ITERATIONS:07d}")
    recipe = str(run.parent / "recipe.yaml")
    done = run_stack("distill", recipe, "--resume", f"out={half}", ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert f"after iteration {HALF}" in done.stdout


@pytest.mark.parametrize("name", rows(ROWS, RARE))
def test_a_run_trains_saves_and_resumes(name: str, wide: World, full: Path, tmp_path: Path) -> None:
    """Nearly as with moments in float32; half and a resume are the whole, bit for bit."""
    run = train(wide, tmp_path, *ROWS[name])
    expected = figures(full, "loss/", "grad/")
    for step, row in figures(run, "loss/", "grad/").items():
        assert row == pytest.approx(expected[step], rel=0.05, abs=1e-6), step
    if not name.startswith("zero"):
        # Of a large weight; others, and each tensor's head, are as they were.
        assert checkpoint_bytes(run) < 0.9 * checkpoint_bytes(full)
    last, half = run / "checkpoints" / f"step-{ITERATIONS:07d}", tmp_path / "half"
    resume(run, half, ranks_of(ROWS[name][1]))
    (tensors, state), (expected_tensors, expected_state) = state_of(half), state_of(run)
    assert same_tensors(tensors, expected_tensors) == []
    assert state == expected_state
    assert differences(objects(half / "checkpoints" / last.name), objects(last)) == []
    assert metrics_of(half)[ITERATIONS] == metrics_of(run)[ITERATIONS]
    if name == "fsdp":
        _other_ranks_take_over(run, tmp_path / "alone")


def _other_ranks_take_over(run: Path, half: Path) -> None:
    """What one rank goes on with is what two had, and so is what follows, to rounding."""
    resume(run, half, ranks=1)
    expected = figures(run, "loss/", "grad/")
    for step, row in figures(half, "loss/", "grad/").items():
        assert row == pytest.approx(expected[step], rel=1e-3, abs=1e-7), step
