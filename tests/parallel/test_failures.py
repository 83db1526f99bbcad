"""Ranks that die, at any moment; numbers that are not finite; disks that are full."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stack.checkpoint import verify
from stack.checkpoint.folders import committed
from tests import forked
from tests.pipeline import World, recipe_fields, write_recipe

pytestmark = pytest.mark.slow

_PATIENCE = 300.0
KILLS = int(os.environ.get("KILLS", "3"))
"""100 in make drill."""


def until(true: Callable[[], object], ranks: list[forked.Fork]) -> None:
    """Wait for what happens while all ranks run."""
    deadline = time.monotonic() + _PATIENCE
    while not true():
        for rank in ranks:
            assert rank.poll() is None, rank.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def run_until(world: World, folder: Path, **parallel: Any) -> tuple[list[forked.Fork], Path]:
    """A long run that saves all the time, once this start of it has committed a checkpoint."""
    fields = recipe_fields(
        world,
        iterations=100_000,
        checkpoint={"every": 1, "keep_last": 3},
        parallel={"backend": "fsdp", "processes": 2, "timeout": 60, **parallel},
    )
    recipe = write_recipe(folder, fields)
    root = folder / "run" / "checkpoints"
    before = committed(root)[-1:]
    ranks = forked.start_ranks("stack", "distill", recipe, "--resume", ranks=2)
    until(lambda: committed(root)[-1:] != before, ranks)
    return ranks, folder / "run"


def next_save(root: Path, ranks: list[forked.Fork]) -> float:
    """Seconds from one checkpoint's commit to the next one's, here and now; returns at the
    latter."""
    times = []
    for _ in range(2):
        newest = committed(root)[-1]
        until(lambda newest=newest: committed(root)[-1] != newest, ranks)
        times.append(time.monotonic())
    return times[1] - times[0]


def test_a_rank_killed_at_any_moment_of_a_save_leaves_whole_checkpoints(
    world: World, tmp_path: Path
) -> None:
    """At moments spread over the way from one checkpoint to the next, with saves going on in the
    background all the time, each rank in turn: what is there afterwards is whole, and the next
    start goes on from it."""
    before = 0
    for kill in range(KILLS):
        ranks, run = run_until(world, tmp_path)
        root = run / "checkpoints"
        time.sleep((kill + 0.5) / KILLS * next_save(root, ranks))
        ranks[kill % 2].kill()
        codes = [rank.wait(_PATIENCE) for rank in ranks]
        assert all(codes), codes
        found, skipped = verify.latest(root)
        assert found, f"kill {kill} of {KILLS}"
        told = ranks[1 - kill % 2].communicate()[1]
        assert not skipped, f"kill {kill} of {KILLS}: a torn checkpoint: {skipped}; {told}"
        iteration = json.loads((found / "state.json").read_text())["iteration"]
        assert iteration > before
        before = iteration


@pytest.mark.parametrize("backend", ["ddp", "fsdp", "zero2"])
def test_the_others_end_with_a_line_when_a_rank_dies(
    world: World, tmp_path: Path, backend: str
) -> None:
    ranks, run = run_until(world, tmp_path, backend=backend)
    ranks[1].kill()
    _, told = ranks[0].communicate(timeout=_PATIENCE)
    assert ranks[0].returncode == 75, told
    [line] = [line for line in told.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {run}: iteration ")
    assert "a rank is gone or silent" in line
    assert any(word in line for word in ("reduce", "gather", "barrier", "broadcast"))
    assert "start again with --resume" in line


def test_a_rank_that_is_silent_is_given_up(world: World, tmp_path: Path) -> None:
    ranks, run = run_until(world, tmp_path, backend="ddp", timeout=30)
    ranks[1].send_signal(signal.SIGSTOP)
    _, told = ranks[0].communicate(timeout=_PATIENCE)
    ranks[1].kill()
    assert ranks[0].returncode == 75, told
    assert f"error: {run}: iteration " in told
    assert verify.latest(run / "checkpoints")[0]


def test_what_is_not_finite_on_one_rank_stops_all_and_spares_the_checkpoints(
    world: World, tmp_path: Path
) -> None:
    """A learning rate that blows the weights up: skipped on all ranks alike, then given up."""
    fields = recipe_fields(
        world, iterations=200, parallel={"backend": "fsdp", "processes": 2}, ema=0.0
    )
    for adam in fields["optim"].values():
        adam |= {"warmup": 0}
    recipe = write_recipe(tmp_path, fields)
    given = ("stack", "distill", recipe, "optim.fake.lr=1e30")
    for rank in forked.start_ranks(*given, ranks=2):
        _, told = rank.communicate(timeout=_PATIENCE)
        assert rank.returncode == 2, told
        assert "iterations in a row had a loss or gradient that is not finite" in told
        assert "Traceback" not in told
    assert verify.latest(tmp_path / "run" / "checkpoints")[0]


def test_a_folder_that_refuses_stops_all_in_one_line(world: World, tmp_path: Path) -> None:
    """In the background: the next boundary of an iteration tells."""
    ranks, run = run_until(world, tmp_path)
    root = run / "checkpoints"
    shutil.move(root, run / "moved")
    root.write_text("no folder")
    for rank in ranks:
        _, told = rank.communicate(timeout=_PATIENCE)
        assert rank.returncode == 2, told
        assert "not saved (" in told
        assert "Traceback" not in told
    assert verify.latest(run / "moved") == (committed(run / "moved")[-1], [])
