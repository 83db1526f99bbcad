"""A real process, killed and stopped again and again, ends as one that was left in peace."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stack.checkpoint.folders import committed
from stack.cli import main
from tests.pipeline import (
    World,
    metrics_of,
    recipe_fields,
    same_tensors,
    start,
    state_of,
    write_recipe,
)

pytestmark = pytest.mark.slow
_PATIENCE = 120.0


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps_logged(run: Path) -> int:
    return max(metrics_of(run), default=0) if (run / "metrics.jsonl").exists() else 0


def to_all(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """To the process and its loader's workers, as a terminal and a cluster's scheduler do."""
    os.killpg(process.pid, number)


@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (2, 1), (0, 2)])
def test_killed_stopped_and_resumed(
    tmp_path: Path, world: World, workers: int, processes: int
) -> None:
    fields = recipe_fields(world, iterations=40, checkpoint={"every": 5})
    fields["data"]["workers"] = workers
    fields["parallel"] = {"accumulation": 2}
    if processes > 1:
        fields["parallel"] |= {"backend": "ddp", "processes": processes}
    whole, broken = (write_recipe(tmp_path / name, fields) for name in ("whole", "broken"))
    assert main(["distill", str(whole)]) == 0
    run = broken.parent / "run"

    process = start(["distill", broken], start_new_session=True)
    wait_until(lambda: bool(committed(run / "checkpoints")), process)
    time.sleep(random.uniform(0, 2))
    to_all(process, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    for signals in ([signal.SIGTERM], [signal.SIGINT, signal.SIGINT, signal.SIGTERM]):
        process = start(["distill", broken, "--resume"], start_new_session=True)
        before = steps_logged(run)
        wait_until(lambda before=before: steps_logged(run) > before, process)
        for number in signals:
            to_all(process, number)
            time.sleep(0.02)
        _, told = process.communicate(timeout=_PATIENCE)
        assert process.returncode == 85, told
        assert f"stopped by {signals[0].name} with the state saved" in told
        assert "Traceback" not in told
        assert not list((run / "checkpoints").glob(".*"))

    process = start(["distill", broken, "--resume"])
    _, told = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 0, told
    (tensors, state), (expected, expected_state) = state_of(run), state_of(whole.parent / "run")
    assert same_tensors(tensors, expected) == []
    assert state == expected_state
    assert metrics_of(run) == metrics_of(whole.parent / "run")
