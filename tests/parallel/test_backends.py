"""Every backend: the same training as one process, and a resume that is exact."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel.rows import rows
from tests.pipeline import (
    World,
    metrics_of,
    recipe_fields,
    run_stack,
    same_tensors,
    state_of,
    write_recipe,
)

pytestmark = pytest.mark.slow

ITERATIONS, HALF = 4, 2

Trained = Callable[[str], Path]
Fields = dict[str, Any]

FSDP: Fields = {"backend": "fsdp", "processes": 2}
BY_TURNS: Fields = {"alternation": "exclusive", "divergence": "fkl"}
BACKENDS: dict[str, tuple[Fields, Fields]] = {
    # name: the recipe's section parallel, and what else it has
    "ddp": ({"backend": "ddp", "processes": 2}, {}),
    "ddp, by turns": ({"backend": "ddp", "processes": 2}, BY_TURNS),
    "fsdp": (FSDP, {}),
    "fsdp, micro-batches": (FSDP | {"accumulation": 2}, {}),
    "fsdp, offload, sharded teacher": (FSDP | {"offload": True, "teacher": "sharded"}, {}),
    "hsdp": (FSDP | {"processes": 4, "shard_size": 2}, {}),
    "hsdp, micro-batches": (FSDP | {"processes": 4, "shard_size": 2, "accumulation": 2}, {}),
    "zero1": ({"backend": "zero1", "processes": 2}, {}),
    "zero2": ({"backend": "zero2", "processes": 2}, {}),
    "zero3": ({"backend": "zero3", "processes": 2}, {}),
    "zero3, micro-batches": ({"backend": "zero3", "processes": 2, "accumulation": 2}, {}),
    "zero3, four, micro-batches": ({"backend": "zero3", "processes": 4, "accumulation": 2}, {}),
}
RARE = {"fsdp, micro-batches", "hsdp", "zero3", "zero3, four, micro-batches"}
"""What is in them is in others too, alone or together with something else."""
NEAR = 3e-4
"""Relative; 2e-5 was the most over four iterations, with micro-batches of one sample."""
DIFFERENCES = {"loss/r1": 1e-3, "h/variance": 1e-3}
"""Figures that are small differences themselves; 4e-5 was the most. The statistics of a rank's own
samples in place of all ranks' put the latter off by a half."""
EXPORTED = {"hsdp, micro-batches", "zero2", "zero3, micro-batches"}
"""One of each way in which weights are written down."""


def train(world: World, folder: Path, **changed: Any) -> Path:
    """Four iterations in one go; returns the run folder."""
    checkpoint = {"every": HALF, "keep_every": HALF}
    fields = recipe_fields(world, iterations=ITERATIONS, checkpoint=checkpoint, **changed)
    ranks = fields.get("parallel", {}).get("processes", 0)
    done = run_stack("distill", str(write_recipe(folder, fields)), ranks=ranks)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run folder of a backend, which no test changes; each trains once."""
    known: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in known:
            parallel, more = BACKENDS[name]
            known[name] = train(world, tmp_path_factory.mktemp("run"), parallel=parallel, **more)
        return known[name]

    return run


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run folder of one process with a backend's recipe; each recipe trains once."""
    known: dict[str, Path] = {}

    def run(name: str) -> Path:
        _, more = BACKENDS[name]
        if repr(more) not in known:
            known[repr(more)] = train(world, tmp_path_factory.mktemp("alone"), **more)
        return known[repr(more)]

    return run


def figures(run: Path, *kinds: str) -> dict[int, dict[str, float]]:
    """Figures of every iteration whose names begin with one of ``kinds``."""
    return {
        step: {name: value for name, value in row.items() if name.startswith(kinds)}
        for step, row in metrics_of(run).items()
    }


@pytest.mark.parametrize("name", rows(BACKENDS, RARE))
def test_the_training_is_that_of_one_process(alone: Trained, trained: Trained, name: str) -> None:
    """Place in the data and counters; figures and weights as near as the order of sums allows."""
    expected, found = alone(name), trained(name)
    expected_rows, found_rows = metrics_of(expected), metrics_of(found)
    assert found_rows.keys() == expected_rows.keys() == set(range(1, ITERATIONS + 1))
    for step, row in expected_rows.items():
        assert found_rows[step].keys() == row.keys()
        for key, value in row.items():
            near = pytest.approx(value, rel=DIFFERENCES.get(key, NEAR), abs=1e-12)
            assert found_rows[step][key] == near, (step, key)
    (tensors, state), (expected_tensors, expected_state) = state_of(found), state_of(expected)
    assert state["stream"] == expected_state["stream"]
    assert state["task"] == expected_state["task"]
    kinds = ("student.unet.", "fake.unet.", "ema_0.9.")
    shared = [name for name in tensors if name.startswith(kinds)]
    assert any(name.startswith("ema_0.9.") for name in shared)
    ours, theirs = (
        torch.cat([each[name].flatten() for name in shared]) for each in (tensors, expected_tensors)
    )
    # Not one by one: Adam makes a whole step of a gradient that is nothing but rounding.
    assert (ours - theirs).norm() < 3e-4 * theirs.norm()  # 2e-5 was the most.


def objects(folder: Path) -> dict[str, Any]:
    """DeepSpeed's files of a checkpoint."""
    return {
        str(path.relative_to(folder)): torch.load(path, weights_only=False)
        for path in folder.rglob("*.pt")
    }


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves(item, f"{name}/{number}")
    else:
        yield name, value


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of tensors in nested objects that are not equal bit for bit."""
    left, right = dict(leaves(a)), dict(leaves(b))
    assert left.keys() == right.keys()
    return [
        name
        for name, value in left.items()
        if isinstance(value, torch.Tensor) and not torch.equal(value, right[name])
    ]


@pytest.mark.parametrize("name", rows(BACKENDS, RARE))
def test_half_and_a_resume_are_the_whole(trained: Trained, tmp_path: Path, name: str) -> None:
    """Weights, moments, averages, RNG, bins and stream, bit for bit."""
    whole, run = trained(name), tmp_path / "run"
    shutil.copytree(whole, run)
    last = run / "checkpoints" / f"step-{ITERATIONS:07d}"
    shutil.rmtree(last)
    command = ["distill", str(whole.parent / "recipe.yaml"), "--resume", f"out={run}"]
    done = run_stack(*command, ranks=BACKENDS[name][0]["processes"])
    assert done.returncode == 0, done.stderr
    assert f"after iteration {HALF}" in done.stdout
    (tensors, state), (expected, expected_state) = state_of(run), state_of(whole)
    assert same_tensors(tensors, expected) == []
    assert state == expected_state
    assert differences(objects(last), objects(whole / "checkpoints" / last.name)) == []


@pytest.mark.parametrize("name", rows(BACKENDS, BACKENDS.keys() - EXPORTED))
def test_a_student_is_exported_from_any(trained: Trained, tmp_path: Path, name: str) -> None:
    """On one process: the average, and the weights as trained."""
    from safetensors.torch import load_file

    run, files = trained(name), {}
    for average in ("0.9", "none"):
        out = tmp_path / average
        done = run_stack("export", str(run), "--out", str(out), "--ema", average)
        assert done.returncode == 0, done.stderr
        files[average] = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    tensors, _ = state_of(run)
    averaged, last = files["0.9"], files["none"]
    assert averaged.keys() == last.keys()
    for weight, value in averaged.items():
        stored = tensors.get(f"ema_0.9.unet.{weight}")
        assert stored is not None
        assert torch.equal(value.flatten(), stored.flatten())
        assert not torch.equal(value, last[weight])
        assert (value - last[weight]).abs().max() < 0.05


BF16 = {"none": 1, "fsdp": 2, "zero2": 2, "zero3": 2}
"""Ranks of each backend."""


@pytest.fixture(scope="module")
def in_bfloat16(world: World, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Runs with heads on the fake score's features, the student trained in every iteration."""
    known: dict[str, Path] = {}
    gan = {"weight": 0.01, "resolutions": [8, 4], "width": 8, "features": "fake_joint"}

    def run(backend: str) -> Path:
        if backend not in known:
            parallel = {"backend": backend, "processes": BF16[backend]}
            compute = {"checkpointing": "none" if backend == "none" else "full"}
            changed = {"precision": "bf16", "student_every": 1, "gan": gan, "compute": compute}
            folder = tmp_path_factory.mktemp("bf16")
            known[backend] = train(world, folder, parallel=parallel, **changed)
        return known[backend]

    return run


@pytest.mark.parametrize("backend", rows(("fsdp", "zero2", "zero3"), ["zero2"]))
def test_bfloat16_survives_freezing_and_two_losses(in_bfloat16: Trained, backend: str) -> None:
    """The heads' loss reaches the fake score too, which is frozen in between, and computed twice:
    the critics' losses stay near those of one process with bfloat16 autocast. (The student's score
    gap is a difference of near-equal numbers, in which roundings do not stay small.)"""
    expected, found = (figures(in_bfloat16(b), "loss/fake", "loss/disc") for b in ("none", backend))
    assert found.keys() == expected.keys()
    for step, row in found.items():
        assert row == pytest.approx(expected[step], rel=0.03), step
