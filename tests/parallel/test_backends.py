"""Every backend: the same training as one process, and a resume that is exact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

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

ITERATIONS, HALF = 20, 10

BACKENDS: dict[str, dict[str, Any]] = {
    "ddp": {"backend": "ddp", "processes": 2},
    "fsdp": {"backend": "fsdp", "processes": 2},
    "fsdp, micro-batches": {"backend": "fsdp", "processes": 2, "accumulation": 2},
    "fsdp, offload, sharded teacher": {
        "backend": "fsdp",
        "processes": 2,
        "offload": True,
        "teacher": "sharded",
    },
    "hsdp": {"backend": "fsdp", "processes": 4, "shard_size": 2},
    "zero1": {"backend": "zero1", "processes": 2},
    "zero2": {"backend": "zero2", "processes": 2},
    "zero3": {"backend": "zero3", "processes": 2},
    "zero3, four, micro-batches": {"backend": "zero3", "processes": 4, "accumulation": 2},
}


def train(world: World, folder: Path, ranks: int = 0, **changed: Any) -> Path:
    """Twenty iterations in one go; returns the run folder."""
    checkpoint = {"every": HALF, "keep_every": HALF}
    fields = recipe_fields(world, iterations=ITERATIONS, checkpoint=checkpoint, **changed)
    done = run_stack("distill", str(write_recipe(folder, fields)), ranks=ranks)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(world, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module", params=BACKENDS)
def parallel(request: pytest.FixtureRequest) -> dict[str, Any]:
    return BACKENDS[request.param]


@pytest.fixture(scope="module")
def sharded(
    parallel: dict[str, Any], world: World, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    return train(world, folder, parallel["processes"], parallel=parallel)


def figures(run: Path, *kinds: str) -> dict[int, dict[str, float]]:
    """Figures of every iteration whose names begin with one of ``kinds``."""
    rows = metrics_of(run).items()
    return {step: {k: v for k, v in row.items() if k.startswith(kinds)} for step, row in rows}


def test_the_curve_is_that_of_one_process(alone: Path, sharded: Path) -> None:
    """Losses, ratios, weights h and score gaps of twenty iterations to 1e-4; the norms of
    gradients, in which differences of samples do not average out, to 1e-3."""
    for kinds, tolerance in ((("loss/", "r/", "h/p", "gap/"), 1e-4), (("grad/",), 1e-3)):
        expected, found = figures(alone, *kinds), figures(sharded, *kinds)
        assert found.keys() == expected.keys() == set(range(1, ITERATIONS + 1))
        for step, row in expected.items():
            assert row
            assert found[step] == pytest.approx(row, rel=tolerance), step


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


def test_half_and_a_resume_are_the_whole(
    parallel: dict[str, Any], sharded: Path, tmp_path: Path
) -> None:
    """Weights, moments, averages, RNG, bins and stream, bit for bit."""
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    last = run / "checkpoints" / f"step-{ITERATIONS:07d}"
    shutil.rmtree(last)
    command = ["distill", str(sharded.parent / "recipe.yaml"), "--resume", f"out={run}"]
    done = run_stack(*command, ranks=parallel["processes"])
    assert done.returncode == 0, done.stderr
    assert f"after iteration {HALF}" in done.stdout
    (tensors, state), (expected, expected_state) = state_of(run), state_of(sharded)
    assert same_tensors(tensors, expected) == []
    assert state == expected_state
    assert differences(objects(last), objects(sharded / "checkpoints" / last.name)) == []
    told = [json.loads(line) for line in (run / "provenance.jsonl").read_text().splitlines()]
    assert len(told) == 2
    assert told[1]["packages"]["torch"] == torch.__version__


def test_a_student_is_exported_from_any(sharded: Path, tmp_path: Path) -> None:
    """On one process: the average, and the weights as trained."""
    from safetensors.torch import load_file

    files = {}
    for name in ("0.9", "none"):
        out = tmp_path / name
        done = run_stack("export", str(sharded), "--out", str(out), "--ema", name)
        assert done.returncode == 0, done.stderr
        files[name] = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    tensors, _ = state_of(sharded)
    average, trained = files["0.9"], files["none"]
    assert average.keys() == trained.keys()
    for name, value in average.items():
        stored = tensors.get(f"ema_0.9.unet.{name}")
        assert stored is not None
        assert torch.equal(value.flatten(), stored.flatten())
        assert not torch.equal(value, trained[name])
        assert (value - trained[name]).abs().max() < 0.05


def test_bfloat16_survives_freezing_and_two_losses(world: World, tmp_path: Path) -> None:
    """The heads' loss reaches the fake score too, which is frozen in between, and computed twice:
    the critics' losses stay near those of one process with bfloat16 autocast. (The student's score
    gap is a difference of near-equal numbers, in which roundings do not stay small.)"""
    changed = {"precision": "bf16", "student_every": 1}
    changed["gan"] = {"weight": 0.01, "resolutions": [8, 4], "width": 8, "features": "fake_joint"}
    runs = {}
    for backend in ("none", "fsdp", "zero2", "zero3"):
        ranks = 1 if backend == "none" else 2
        parallel = {"backend": backend, "processes": ranks}
        compute = {"checkpointing": "none" if backend == "none" else "full"}
        fields = recipe_fields(world, parallel=parallel, compute=compute, **changed)
        done = run_stack("distill", str(write_recipe(tmp_path / backend, fields)), ranks=ranks)
        assert done.returncode == 0, done.stderr
        runs[backend] = figures(tmp_path / backend / "run", "loss/fake", "loss/disc")
    for backend, rows in runs.items():
        for step, row in rows.items():
            assert row == pytest.approx(runs["none"][step], rel=0.03), (backend, step)
