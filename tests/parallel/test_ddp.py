"""Several ranks on one machine: the same training, the same exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from stack.cli import main
from stack.parallel.collectives import ALONE, ranks_of
from stack.parallel.launch import launch
from stack.util.errors import UserError
from tests import forked
from tests.pipeline import World, recipe_fields, run_stack, state_of, write_recipe


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
    "print('rank', rank, 'of', of, file=sys.stderr, flush=True); code = {codes}[int(rank)]; "
    "sys.exit(code) if code >= 0 else os.kill(os.getpid(), -code)"
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
        ((75, -9), 75),  # A rank that was killed, and the one that missed it.
        ((-9, 75), 75),
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


_STOPPED_BY_A_SIGNAL = """
import os, pathlib, signal, sys, time
ready = pathlib.Path(sys.argv[1], os.environ["RANK"])
def stop(*_):
    ready.with_suffix(".stopped").touch()
    sys.exit(85)
signal.signal(signal.SIGTERM, stop)
ready.touch()
time.sleep(600)
"""


def test_signals_go_to_every_rank(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def send() -> None:
        while len(list(tmp_path.iterdir())) < 2 or signal.getsignal(signal.SIGTERM) == before:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    assert launch(2, [sys.executable, "-c", _STOPPED_BY_A_SIGNAL, str(tmp_path)]) == 85
    sender.join()
    assert {path.name for path in tmp_path.glob("*.stopped")} == {"0.stopped", "1.stopped"}


@pytest.mark.slow
def test_two_ranks_refuse_another_recipe_in_one_line(world: World, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, recipe_fields(world, iterations=2))
    assert main(["distill", str(recipe)]) == 0
    two = ["parallel.backend=ddp", "parallel.processes=2"]
    message = f"error: {tmp_path}/run/recipe.yaml: seed: the run was started with 0"
    for rank in forked.start_ranks("stack", "distill", recipe, "--resume", "seed=5", *two, ranks=2):
        _, told = rank.communicate(timeout=300)
        assert rank.returncode == 2
        assert told.count(message) == 1
        assert "Traceback" not in told


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_ranks(world: World, tmp_path: Path) -> None:
    """Two are started by the command line itself, as on a laptop."""
    fields = recipe_fields(world, parallel={"backend": "ddp", "processes": 2}, iterations=2)
    recipe = str(write_recipe(tmp_path, fields))
    done = run_stack("distill", recipe)
    assert done.returncode == 0, done.stderr
    alone = ["parallel.processes=1", "parallel.backend=none", "iterations=4", "--resume"]
    assert main(["distill", recipe, *alone]) == 0
    _, state = state_of(tmp_path / "run")
    assert state["iteration"] == 4
