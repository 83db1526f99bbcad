"""A real process, killed and stopped again and again, ends as one that was left in peace."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stack.checkpoint.folders import committed
from stack.cli import main
from tests import forked
from tests.pipeline import World, assert_same_state, metrics_of, recipe_fields, write_recipe

pytestmark = pytest.mark.slow
_PATIENCE = 300.0
ENDLESS = "iterations=100000"
"""Whatever the machine does meanwhile, an interrupted start is not at its end."""


def wait_until(true: Callable[[], bool], process: forked.Fork) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps_logged(run: Path) -> int:
    return max(metrics_of(run), default=0) if (run / "metrics.jsonl").exists() else 0


def to_all(ranks: list[forked.Fork], number: signal.Signals) -> None:
    """To the processes and their loaders' workers, as a terminal and a cluster's scheduler do."""
    for rank in ranks:
        os.killpg(rank.pid, number)


@pytest.mark.parametrize(
    ("workers", "processes"), [pytest.param(0, 1, marks=pytest.mark.drill), (2, 1), (0, 2)]
)
def test_killed_stopped_and_resumed(
    tmp_path: Path, world: World, workers: int, processes: int
) -> None:
    fields = recipe_fields(world, iterations=12, checkpoint={"every": 5})
    fields["data"]["workers"] = workers
    backend = "ddp" if processes > 1 else "none"
    fields["parallel"] = {"backend": backend, "processes": processes, "accumulation": 2}
    recipe, run = write_recipe(tmp_path / "broken", fields), tmp_path / "broken" / "run"

    def begin(*arguments: str) -> list[forked.Fork]:
        return forked.start_ranks("stack", "distill", recipe, *arguments, ranks=processes)

    ranks = begin(ENDLESS)
    wait_until(lambda: bool(committed(run / "checkpoints")), ranks[0])
    before = steps_logged(run)
    wait_until(lambda: steps_logged(run) >= before + 3, ranks[0])
    to_all(ranks, signal.SIGKILL)
    assert [rank.wait(_PATIENCE) for rank in ranks] == [-signal.SIGKILL] * processes

    for signals in ([signal.SIGTERM], [signal.SIGINT, signal.SIGINT, signal.SIGTERM]):
        ranks = begin(ENDLESS, "--resume")
        before = steps_logged(run)
        wait_until(lambda before=before: steps_logged(run) > before, ranks[0])
        for number in signals:
            to_all(ranks, number)
            time.sleep(0.02)
        assert [rank.wait(_PATIENCE) for rank in ranks] == [85] * processes
        told = ranks[0].communicate()[1]
        assert f"stopped by {signals[0].name} with the state saved" in told
        assert not any("Traceback" in rank.communicate()[1] for rank in ranks)
        assert not list((run / "checkpoints").glob(".*"))

    total = f"iterations={steps_logged(run) + 2}"
    ranks = begin(total, "--resume")
    assert [rank.wait(_PATIENCE) for rank in ranks] == [0] * processes, ranks[0].communicate()[1]
    whole = write_recipe(tmp_path / "whole", fields)
    if processes == 1:
        assert main(["distill", str(whole), total]) == 0
    else:
        done = forked.run("stack", "distill", whole, total, ranks=processes)
        assert done.returncode == 0, done.stderr
    assert_same_state(run, tmp_path / "whole" / "run")
    assert metrics_of(run) == metrics_of(tmp_path / "whole" / "run")
