"""Several ranks on one machine: the same training, the same exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stack.parallel.collectives import ALONE, ranks_of
from stack.parallel.launch import launch
from stack.util.errors import UserError
from tests.pipeline import World, metrics_of, recipe_fields, run_stack, state_of, write_recipe


def test_alone_every_collective_returns_its_argument() -> None:
    value = torch.arange(3.0)
    assert ALONE.first
    assert ALONE.all_reduce_mean(value) is value
    assert ALONE.gather("x") == ["x"]
    assert [ALONE.any(flag) for flag in (True, False)] == [True, False]
    ALONE.barrier()


def test_one_process_for_several_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"parallel\.backend: none .* started 2"), ranks_of("none"):
        pass


_REPORT = (
    "import os, sys; rank, of = os.environ['RANK'], os.environ['WORLD_SIZE']; "
    "print('rank', rank, 'of', of, file=sys.stderr); sys.exit({codes}[int(rank)])"
)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((0, 0), 0),
        ((85, 85), 85),
        ((2, 0), 2),
        ((0, 3), 3),
        ((75, 1), 1),  # 75 is what a peer says of a rank that failed in another way.
        ((75, 2), 2),
        ((1, 2), 2),
        ((75, 75), 75),
    ],
)
def test_launch_returns_the_first_failure_and_its_log(
    codes: tuple[int, int], expected: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch(2, [sys.executable, "-c", _REPORT.format(codes=codes)]) == expected
    told = capfd.readouterr().err
    assert "rank 0 of 2" in told
    assert ("rank 1 of 2" in told) == (codes[0] != expected)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_rank_that_fails_takes_the_others_with_it_and_is_heard(
    failing: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stack.parallel.launch._GRACE", 0.2)
    script = (
        "import os, sys, time; rank = int(os.environ['RANK'])\n"
        f"if rank == {failing}: sys.exit(f'rank {{rank}} fails')\n"
        "time.sleep(600)"
    )
    assert launch(3, [sys.executable, "-c", script]) == 1
    assert capfd.readouterr().err == f"rank {failing} fails\n"


def test_a_refusal_counts_more_than_the_crash_it_causes(capfd: pytest.CaptureFixture[str]) -> None:
    script = (
        "import os, sys, time; rank = int(os.environ['RANK'])\n"
        "time.sleep(1 - rank)\n"
        "print('rank', rank, 'ends', file=sys.stderr)\n"
        "sys.exit(2 - rank)"
    )
    assert launch(2, [sys.executable, "-c", script]) == 2
    assert capfd.readouterr().err == "rank 0 ends\n"


@pytest.mark.slow
def test_two_ranks_refuse_another_recipe_in_one_line(world: World, tmp_path: Path) -> None:
    parallel = {"backend": "ddp", "processes": 2}
    recipe = write_recipe(tmp_path, recipe_fields(world, parallel=parallel))
    assert run_stack("distill", str(recipe)).returncode == 0
    done = run_stack("distill", str(recipe), "--resume", "seed=5")
    assert done.returncode == 2
    message = f"error: {tmp_path}/run/recipe.yaml: seed: the run was started with 0"
    assert done.stderr.count(message) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{}, {"alternation": "exclusive", "divergence": "fkl"}])
def test_two_ranks_train_as_one(world: World, tmp_path: Path, changed: dict[str, Any]) -> None:
    """Noise by position and statistics over all ranks: only the order of sums differs."""
    ends = []
    for name, parallel in (("one", {}), ("two", {"backend": "ddp", "processes": 2})):
        fields = recipe_fields(world, parallel=parallel, **changed)
        recipe = write_recipe(tmp_path / name, fields)
        done = run_stack("distill", str(recipe))
        assert done.returncode == 0, done.stderr
        run = tmp_path / name / "run"
        ends.append((state_of(run), metrics_of(run)))
    ((tensors, state), rows), ((other_tensors, other_state), other_rows) = ends
    assert state["stream"] == other_state["stream"]
    assert state["task"] == other_state["task"]
    assert rows.keys() == other_rows.keys()
    for step, row in rows.items():
        other = other_rows[step]
        assert row.keys() == other.keys()
        for key in row:
            assert other[key] == pytest.approx(row[key], rel=1e-3, abs=1e-5), key
    trained = [name for name in tensors if name.startswith(("student.", "fake.", "ema_0.9."))]
    assert trained
    for name in trained:
        torch.testing.assert_close(other_tensors[name], tensors[name], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_ranks(world: World, tmp_path: Path) -> None:
    fields = recipe_fields(world, parallel={"backend": "ddp", "processes": 2}, iterations=4)
    recipe = write_recipe(tmp_path, fields)
    assert run_stack("distill", str(recipe)).returncode == 0
    alone = ["parallel.processes=1", "parallel.backend=none", "iterations=6", "--resume"]
    done = run_stack("distill", str(recipe), *alone)
    assert done.returncode == 0, done.stderr
    _, state = state_of(tmp_path / "run")
    assert state["iteration"] == 6
