"""Networks behind DeepSpeed engines, under the real algorithm: the same training as one process
without them, a discard without a trace, and files that load on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import forked
from tests.parallel.rows import rows
from tests.parallel.zero_ranks import CASES, STEPS, plain
from tests.pipeline import World, recipe_fields, run_stack, write_recipe

pytestmark = pytest.mark.slow

STAGES = [(2, "some"), (3, "some"), (1, "all"), (2, "all"), (3, "all")]
"""And which of the tasks; test_backends.py has every stage trained, saved and resumed."""
RARE = [row for row in STAGES if row[1] == "all"]
SOME = ["train", "discard", "sharding", "save"]
SOME += ["train:bf16", "refresh:bf16", "save:bf16", "train:offload"]
ALL = ["train:every", *SOME, "refresh", "discard:bf16", "discard:offload"]

_NEAR = 5e-4
"""Relative to the largest value. The order of sums is another on each kind of CPU: 1.4e-5 on an AMD
EPYC. One value that is rounded to bfloat16 would be off by up to 4e-3."""


def run(processes: int, stage: int, folder: Path, *tasks: str) -> None:
    """Tasks of zero_ranks.py on real processes."""
    arguments = [str(stage), str(folder), *tasks]
    done = forked.run("tests.parallel.zero_ranks", *arguments, ranks=processes)
    assert done.returncode == 0, done.stderr


@pytest.fixture(
    scope="module",
    params=[pytest.param(row, marks=pytest.mark.drill if row in RARE else ()) for row in STAGES],
    ids=lambda row: f"stage {row[0]}, {row[1]}",
)
def done(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    """The stage, and the folder in which two ranks have done the tasks."""
    (stage, which), folder = request.param, tmp_path_factory.mktemp("zero")
    run(2, stage, folder, *(ALL if which == "all" else SOME))
    return stage, folder


def test_one_process_needs_no_launcher(world: World, tmp_path: Path) -> None:
    """And what its files do not fit is told before DeepSpeed reads them."""
    fields = recipe_fields(world, iterations=2, parallel={"backend": "zero3"})
    recipe = str(write_recipe(tmp_path, fields))
    done = run_stack("distill", recipe)
    assert done.returncode == 0, done.stderr
    other = [f"out={tmp_path}/other", "gan.width=4", "--fork", str(tmp_path / "run")]
    refused = run_stack("distill", recipe, *other)
    assert refused.returncode == 2, refused.stderr
    [line] = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "/heads: " in line
    assert "the checkpoint has (" in line
    assert not (tmp_path / "other").exists()


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """To a tolerance relative to the largest value."""
    difference = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    assert difference < tolerance, float(difference)


def test_training_is_that_of_one_process(done: tuple[int, Path]) -> None:
    """With frozen critics, clipping, micro-batches and, with fake_joint, gradients of two losses
    of two networks in one network."""
    sources = [source for source, _ in CASES if (done[1] / f"{source}.pt").exists()]
    assert {"fake", "fake_joint"} <= {*sources}
    for source in sources:
        assert_that_of_one_process(done[1], source)


def assert_that_of_one_process(folder: Path, source: str) -> None:
    rows, weights = torch.load(folder / f"{source}.pt")
    expected_rows, expected_weights = plain(source)
    assert len(rows) == STEPS
    for row, expected in zip(rows, expected_rows, strict=True):
        assert row.keys() == expected.keys()
        for key, value in row.items():
            close(value, expected[key].detach(), _NEAR)
    for name, parameters in expected_weights.items():
        assert weights[name].keys() == parameters.keys()
        for key, value in weights[name].items():
            close(value, parameters[key], _NEAR)


def test_offloaded_training_is_the_same(done: tuple[int, Path]) -> None:
    """Clipping included, of gradients that DeepSpeed keeps elsewhere then."""
    source = CASES[1][0]
    (rows, weights), (other_rows, other_weights) = (
        torch.load(done[1] / f"{name}.pt") for name in (source, f"{source}offload")
    )
    for row, other in zip(rows, other_rows, strict=True):
        for key, value in row.items():
            close(other[key], value, _NEAR)
    for name, parameters in weights.items():
        for key, value in parameters.items():
            close(other_weights[name][key], value, _NEAR)


def test_bfloat16_keeps_float32_weights(done: tuple[int, Path]) -> None:
    """Not rounded at the start, and steps that bfloat16 cannot hold add up: rounding would move
    weights by up to 1e-3."""
    source = CASES[1][0]
    _, weights = torch.load(done[1] / f"{source}bf16.pt")
    _, expected = plain(source)
    for name, parameters in expected.items():
        for key, value in parameters.items():
            assert weights[name][key].dtype == torch.float32
            assert (weights[name][key] - value).abs().max() < 3e-4, f"{name}.{key}"


@pytest.mark.parametrize("processes", rows((1, 4), [1]))
def test_another_number_of_ranks_loads_the_files(done: tuple[int, Path], processes: int) -> None:
    """Weights, moments and step counters bit for bit; the folder is as it was."""
    run(processes, done[0], done[1], *(("load", "load:bf16") if processes == 1 else ("load",)))
