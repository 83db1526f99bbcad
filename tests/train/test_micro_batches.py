"""As many micro-batches as a rank's memory asks for; the same training."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import pytest

from stack.cli import main
from stack.config.load import load_recipe
from stack.parallel.collectives import Ranks
from stack.train.build import micro_batches_of
from stack.util.errors import UserError
from tests.pipeline import (
    World,
    assert_same_state,
    finish,
    metrics_of,
    recipe_fields,
    state_of,
    write_recipe,
)

COUNTS = {
    # global batch, ranks: micro-batches of an iteration for micro_batch 1, 2, ... 8
    (8, 1): [8, 4, 4, 2, 2, 2, 2, 1],
    (8, 2): [4, 2, 2, 1, 1, 1, 1, 1],
    (8, 4): [2, 1, 1, 1, 1, 1, 1, 1],
    (8, 8): [1, 1, 1, 1, 1, 1, 1, 1],
    (24, 1): [24, 12, 8, 6, 6, 4, 4, 3],
    (24, 2): [12, 6, 4, 3, 3, 2, 2, 2],
    (24, 4): [6, 3, 2, 2, 2, 1, 1, 1],
    (24, 8): [3, 3, 1, 1, 1, 1, 1, 1],
}


def count(world: World, folder: Path, batch: int, ranks: int, **parallel: Any) -> int:
    fields = recipe_fields(world, parallel={"backend": "ddp", **parallel})
    fields["data"]["global_batch"] = batch
    return micro_batches_of(load_recipe(write_recipe(folder, fields)), Ranks(0, ranks))


@pytest.mark.parametrize("batch", [8, 24])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_how_many(batch: int, ranks: int, world: World, tmp_path: Path) -> None:
    found = [count(world, tmp_path, batch, ranks, micro_batch=most) for most in range(1, 9)]
    assert found == COUNTS[batch, ranks]
    for most, number in enumerate(found, 1):
        assert batch % (ranks * number) == 0
        assert number >= ceil(batch / ranks / most)
        assert batch // ranks // number <= most


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_without_it_accumulation_counts(accumulation: int, world: World, tmp_path: Path) -> None:
    assert count(world, tmp_path, 8, 2, accumulation=accumulation) == accumulation


@pytest.mark.parametrize(
    ("ranks", "parallel", "text"),
    [
        (3, {"micro_batch": 2}, "3 ranks of 1 micro-batches do not divide the global batch 8"),
        (3, {}, "3 ranks of 1 micro-batches do not divide the global batch 8"),
        (2, {"accumulation": 8}, "2 ranks of 8 micro-batches do not divide the global batch 8"),
    ],
)
def test_what_does_not_divide(
    ranks: int, parallel: dict[str, int], text: str, world: World, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=text):
        count(world, tmp_path, 8, ranks, **parallel)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (["parallel.micro_batch=4", "parallel.accumulation=2"], "micro_batch: 4, and accumulation"),
        (["parallel.micro_batch=0"], "parallel.micro_batch"),
        (["parallel.micro_batch=1.5"], "parallel.micro_batch"),
    ],
)
def test_refused(
    fields: list[str],
    text: str,
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe(tmp_path, recipe_fields(world))
    assert main(["distill", str(recipe), *fields]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert text in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("most", "accumulation"), [(8, 1), (5, 2), (2, 4), (1, 8)])
def test_the_same_training_as_by_accumulation(
    most: int, accumulation: int, world: World, tmp_path: Path
) -> None:
    """Bit for bit."""
    runs = [
        finish(tmp_path / name, recipe_fields(world, iterations=2, parallel={name: value}))
        for name, value in (("micro_batch", most), ("accumulation", accumulation))
    ]
    assert_same_state(*runs)
    assert metrics_of(runs[0]) == metrics_of(runs[1])


def test_a_run_goes_on_with_another_one(world: World, tmp_path: Path) -> None:
    """With less memory, say: the same iterations, but for the order of sums."""
    ends = []
    for name, second in (("same", 8), ("less", 2)):
        fields = recipe_fields(world, iterations=2, parallel={"micro_batch": 8})
        recipe = write_recipe(tmp_path / name, fields)
        assert main(["distill", str(recipe)]) == 0
        more = ["iterations=4", f"parallel.micro_batch={second}"]
        assert main(["distill", str(recipe), *more, "--resume"]) == 0
        ends.append((state_of(tmp_path / name / "run"), metrics_of(tmp_path / name / "run")))
    ((_, state), rows), ((_, other_state), other_rows) = ends
    assert state["iteration"] == other_state["iteration"] == 4
    assert state["stream"] == other_state["stream"]
    assert rows[2] == other_rows[2]
    for step in (3, 4):
        for key, value in rows[step].items():
            assert other_rows[step][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
