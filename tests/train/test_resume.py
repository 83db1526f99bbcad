"""A run that was interrupted ends as one that was not: bit for bit."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stack.cli import main
from stack.config.load import load_recipe
from stack.fdistill.algorithm import FDistill
from stack.train.pretrain import UnetTask
from stack.util.errors import UserError
from tests.pipeline import (
    World,
    copy,
    metrics_of,
    pretrain_fields,
    recipe_fields,
    same_tensors,
    state_of,
    tree,
    write_recipe,
)


class PowerCutError(Exception):
    """Ends a run at a moment of the test's choice, with nothing saved."""


def at(iteration: int, act: Callable[[], None], patch: pytest.MonkeyPatch, task: type) -> None:
    """Do something in the middle of an iteration."""
    original = task.iteration

    def iterate(self: Any, number: int, batches: Any) -> Any:
        outcome = original(self, number, batches)
        if number == iteration:
            act()
        return outcome

    patch.setattr(task, "iteration", iterate)


def cut() -> None:
    raise PowerCutError


def assert_same_end(run: Path, expected: Path) -> None:
    """Every tensor, counter and place in the stream, and every logged figure."""
    (tensors, state), (expected_tensors, expected_state) = state_of(run), state_of(expected)
    assert same_tensors(tensors, expected_tensors) == []
    assert state == expected_state
    assert metrics_of(run) == metrics_of(expected)


def events(run: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["event"], row["step"]) for row in rows if "event" in row]


def test_the_state_is_complete(finished: Path) -> None:
    """Networks, moments, average, ratio, generator; counters, stream; the recipe."""
    tensors, state = state_of(finished)
    for network in ("student", "fake"):
        weight = "unet.conv_in.weight"
        moments = [f"optimizer.{weight}.{key}" for key in ("step", "exp_avg", "exp_avg_sq")]
        assert {f"{network}.{name}" for name in (weight, *moments)} <= tensors.keys()
    assert {
        "heads.heads.0.1.weight",
        "ema_0.9.unet.conv_in.weight",
        "rng.rank0.cpu",
    } <= tensors.keys()
    assert tensors["ratio.counts"].sum() > 0
    assert state["iteration"] == 6
    assert state["skipped"] == 0
    assert state["task"] == {
        "steps": {"student": 3, "fake": 6, "heads": 6},
        "averages": {"ema_0.9": 3},
    }
    assert state["stream"] | {"epoch": 1, "step": 0} == state["stream"], "52 // 8 steps an epoch"
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == [
        "step-0000004",
        "step-0000006",
    ]
    recipe = (finished / "recipe.yaml").read_text()
    assert (finished / "checkpoints" / "step-0000006" / "recipe.yaml").read_text() == recipe


def test_every_network_is_told_of_when_they_take_turns(tmp_path: Path, world: World) -> None:
    """Rows at multiples of k alone would be the student's, run after run."""
    fields = recipe_fields(world, alternation="exclusive", log={"every": 4})
    assert main(["distill", str(write_recipe(tmp_path, fields))]) == 0
    rows = metrics_of(tmp_path / "run")
    assert list(rows) == [1, 4, 5, 6]
    assert "loss/gap" in rows[4]
    assert "loss/fake" in rows[5]


def test_metrics_of_every_step(finished: Path) -> None:
    rows = metrics_of(finished)
    assert list(rows) == [1, 2, 3, 4, 5, 6]
    assert [step for step, row in rows.items() if "loss/gap" in row] == [2, 4, 6]
    assert all({"lr/student", "loss/fake", "skipped"} <= row.keys() for row in rows.values())
    assert events(finished) == [("start", 0), ("finished", 6)]
    assert list(finished.glob("events.out.tfevents.*"))


def crash(recipe: str, iteration: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        at(iteration, cut, patch, FDistill)
        with pytest.raises(PowerCutError):
            main(["distill", recipe])


def test_a_crash_before_the_first_checkpoint(
    tmp_path: Path, world: World, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(write_recipe(tmp_path, recipe_fields(world, checkpoint={"every": 6})))
    crash(recipe, 3, monkeypatch)
    assert list(metrics_of(tmp_path / "run")) == [1, 2, 3]
    assert main(["distill", recipe, "--resume"]) == 0
    assert_same_end(tmp_path / "run", finished)
    assert events(tmp_path / "run") == [("start", 0), ("resume", 0), ("finished", 6)]


def test_a_signal_saves_and_a_resume_goes_on(
    tmp_path: Path,
    world: World,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the end of the iteration, and however many more signals come."""
    recipe = str(write_recipe(tmp_path, recipe_fields(world, checkpoint={"every": 6})))

    def stop() -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        at(2, stop, patch, FDistill)
        assert main(["distill", recipe]) == 85
    assert "stopped by SIGTERM with the state saved; --resume" in capsys.readouterr().err
    assert state_of(tmp_path / "run")[1]["iteration"] == 3
    assert main(["distill", recipe, "--resume"]) == 0
    assert_same_end(tmp_path / "run", finished)
    expected = [("start", 0), ("stopped", 3), ("resume", 3), ("finished", 6)]
    assert events(tmp_path / "run") == expected


def test_a_damaged_checkpoint_costs_only_the_way_from_the_one_before(
    tmp_path: Path,
    world: World,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = str(write_recipe(tmp_path, recipe_fields(world)))
    crash(recipe, 4, monkeypatch)
    state = tmp_path / "run" / "checkpoints" / "step-0000004" / "state.json"
    state.write_text(state.read_text().replace("4", "5"))
    assert main(["distill", recipe, "--resume"]) == 0
    told = capsys.readouterr().out
    assert "step-0000004: state.json does not match its SHA-256" in told
    assert "after iteration 2" in told
    assert_same_end(tmp_path / "run", finished)
    assert events(tmp_path / "run") == [("start", 0), ("resume", 2), ("finished", 6)]


def test_resume_of_a_finished_run_changes_nothing(
    world: World, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(finished)
    assert main(["distill", str(finished.parent / "recipe.yaml"), "--resume"]) == 0
    assert tree(finished) == before
    assert "all 6 iterations are done" in capsys.readouterr().out


@pytest.fixture
def unfinished(tmp_path: Path, finished: Path) -> Path:
    """A run that could go on, with what an interrupted save left behind."""
    run = copy(finished, tmp_path / "run")
    (run / "checkpoints" / ".staging-1").mkdir()
    (run / "checkpoints" / ".staging-1" / "state.json").write_text("{")
    return run


def test_a_resume_writes_its_recipe(tmp_path: Path, world: World, unfinished: Path) -> None:
    """Operational fields may change, such as the place of the same data."""
    recipe = str(write_recipe(tmp_path, recipe_fields(world)))
    moved = f"data.folders=[{copy(world.data, tmp_path / 'moved')}]"
    assert main(["distill", recipe, "--resume", "iterations=7", moved]) == 0
    stored = load_recipe(unfinished / "recipe.yaml")
    assert stored == load_recipe(recipe, ["iterations=7", moved])
    assert state_of(unfinished)[1]["iteration"] == 7
    assert not list((unfinished / "checkpoints").glob(".*"))


def test_a_resume_on_other_data_is_refused_and_leaves_no_trace(
    tmp_path: Path, world: World, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(tmp_path, recipe_fields(world)))
    before = tree(unfinished)
    assert main(["distill", recipe, "--resume", f"data.folders=[{world.shards}]"]) == 2
    assert "fingerprint: the saved place is of another stream" in capsys.readouterr().err
    assert tree(unfinished) == before


def test_a_resume_whose_checkpoint_does_not_load_leaves_no_trace(
    tmp_path: Path, world: World, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Someone has edited the run's recipe, and resumes with the same."""
    fields = recipe_fields(world)
    stored = unfinished / "recipe.yaml"
    stored.write_text(stored.read_text().replace("width: 8", "width: 16"))
    fields["gan"]["width"] = 16
    recipe = str(write_recipe(tmp_path, fields))
    before = tree(unfinished)
    assert main(["distill", recipe, "--resume", "iterations=7"]) == 2
    assert "the checkpoint has" in capsys.readouterr().err
    assert tree(unfinished) == before


def test_sampling_and_logging_leave_no_trace(tmp_path: Path, world: World, finished: Path) -> None:
    """Pictures on every iteration, and yet the same ratio bins, generator, stream and weights."""
    fields = recipe_fields(world, log={"every": 4, "sample_every": 1}, checkpoint={"every": 6})
    assert main(["distill", str(write_recipe(tmp_path, fields))]) == 0
    (tensors, state), (expected_tensors, expected_state) = map(
        state_of, (tmp_path / "run", finished)
    )
    assert same_tensors(tensors, expected_tensors) == []
    assert state == expected_state
    pictures = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert pictures == [f"student-{step:07d}.png" for step in range(1, 7)]
    assert list(metrics_of(tmp_path / "run")) == [4, 6]


def refused_without_a_trace(recipe: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The autoencoder's state loads, the UNet's does not."""

    def refuse(self: Any, counters: Any) -> None:
        raise UserError("of something else")

    before = tree(run)
    with monkeypatch.context() as patch:
        patch.setattr(UnetTask, "load_counters", refuse)
        assert main(["pretrain", recipe, "--resume", "log.every=2"]) == 2
    assert tree(run) == before


def test_pretraining_resumes_exactly(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut in the UNet's second epoch, after which no latents are cached any more."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["pretrain", str(write_recipe(whole, pretrain_fields(world)))]) == 0
    recipe = str(write_recipe(broken, pretrain_fields(world)))
    with monkeypatch.context() as patch:
        at(9, cut, patch, UnetTask)
        with pytest.raises(PowerCutError):
            main(["pretrain", recipe])
    assert not (broken / "run" / "teacher").exists()
    refused_without_a_trace(recipe, broken / "run", monkeypatch)
    assert main(["pretrain", recipe, "--resume"]) == 0
    for part in ("vae", "unet"):
        assert_same_end(broken / "run" / part, whole / "run" / part)
    teachers = [
        {name: digest for name, (_, digest) in tree(folder / "run" / "teacher").items()}
        for folder in (whole, broken)
    ]
    assert teachers[0] == teachers[1]
