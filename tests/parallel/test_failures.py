"""Ranks that die, at any moment; numbers that are not finite; disks that are full."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from stack.checkpoint import verify
from stack.checkpoint.folders import committed
from tests.pipeline import World, recipe_fields, start, write_recipe

pytestmark = pytest.mark.slow

_PATIENCE = 120.0
MOMENTS = int(os.environ.get("KILLS", "10"))
"""100 in make drill."""


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


def run_until(world: World, folder: Path, **parallel: Any) -> tuple[subprocess.Popen[str], Path]:
    """A long run that saves all the time, once this start of it has committed a checkpoint."""
    fields = recipe_fields(
        world,
        iterations=100_000,
        checkpoint={"every": 1, "keep_last": 3},
        parallel={"backend": "fsdp", "processes": 2, **parallel},
    )
    recipe = write_recipe(folder, fields)
    root = folder / "run" / "checkpoints"
    before = committed(root)[-1:]
    process = start(["distill", str(recipe), "--resume"])
    deadline = time.monotonic() + _PATIENCE
    while committed(root)[-1:] == before:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process, folder / "run"


def test_a_rank_killed_at_any_moment_of_a_save_leaves_whole_checkpoints(
    world: World, tmp_path: Path
) -> None:
    """At random moments, with saves going on in the background all the time: what is there
    afterwards is whole, and the next start goes on from it."""
    before = 0
    for moment in range(MOMENTS):
        process, run = run_until(world, tmp_path)
        time.sleep(random.uniform(0, 0.5))
        victim = random.choice(ranks_of(process))
        victim.send_signal(signal.SIGKILL)
        _, told = process.communicate(timeout=_PATIENCE)
        assert process.returncode != 0
        root = run / "checkpoints"
        found, skipped = verify.latest(root)
        assert found, f"moment {moment}"
        assert not skipped, f"moment {moment}: a torn checkpoint: {skipped}; {told}"
        iteration = json.loads((found / "state.json").read_text())["iteration"]
        assert iteration > before
        before = iteration


@pytest.mark.parametrize("backend", ["ddp", "fsdp", "zero2"])
def test_the_others_end_with_a_line_when_a_rank_dies(
    world: World, tmp_path: Path, backend: str
) -> None:
    process, run = run_until(world, tmp_path, backend=backend, timeout=20)
    ranks_of(process)[1].send_signal(signal.SIGKILL)
    _, told = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 75, told
    [line] = [line for line in told.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {run}: iteration ")
    assert "a rank is gone or silent" in line
    assert any(word in line for word in ("reduce", "gather", "barrier", "broadcast"))
    assert "start again with --resume" in line


def test_a_rank_that_is_silent_is_given_up(world: World, tmp_path: Path) -> None:
    process, run = run_until(world, tmp_path, backend="ddp", timeout=5)
    silent = ranks_of(process)[1]
    silent.send_signal(signal.SIGSTOP)
    _, told = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 75, told
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
    process = start(["distill", str(recipe), "optim.fake.lr=1e30"])
    _, told = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 2, told
    assert "iterations in a row had a loss or gradient that is not finite" in told
    assert "Traceback" not in told
    assert verify.latest(tmp_path / "run" / "checkpoints")[0]


def test_a_folder_that_refuses_stops_all_in_one_line(world: World, tmp_path: Path) -> None:
    """In the background: the next boundary of an iteration tells."""
    process, run = run_until(world, tmp_path)
    root = run / "checkpoints"
    shutil.move(root, run / "moved")
    root.write_text("no folder")
    _, told = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 2, told
    assert "not saved (" in told
    assert "Traceback" not in told
    assert verify.latest(run / "moved") == (committed(run / "moved")[-1], [])
