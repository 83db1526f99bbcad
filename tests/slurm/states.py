"""``python -m tests.slurm.states same|weights RUN EXPECTED``: whether the newest checkpoints of two
runs hold the same, and ``recipe FOLDER``: FOLDER/recipe.yaml with a tiny teacher and its data. In
processes of their own, as tests that only wait for Slurm need no libraries."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.edm_world import distill_fields, make_edm_world
from tests.pipeline import assert_same_state, same_tensors, state_of, write_recipe


def recipe(folder: Path) -> None:
    fields = {"log": {"every": 1}, "device": "cpu", "parallel": {"backend": "ddp", "watchdog": 0}}
    write_recipe(folder, distill_fields(make_edm_world(folder), **fields))


def weights(run: Path, expected: Path) -> None:
    """They are at the same place in the data, and their weights, moments and averages are the same;
    generators, which each rank has, are left out. For runs whose sums have the same two terms: of
    two ranks here, of two micro-batches there."""
    (tensors, state), (expected_tensors, expected_state) = state_of(run), state_of(expected)
    assert state == expected_state
    floats = {name: t for name, t in expected_tensors.items() if t.is_floating_point()}
    assert same_tensors({name: tensors[name] for name in floats}, floats) == []


if __name__ == "__main__":
    {"same": assert_same_state, "weights": weights, "recipe": recipe}[sys.argv[1]](
        *map(Path, sys.argv[2:])
    )
