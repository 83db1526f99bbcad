"""Where a run may start: at an earlier step, with another run's state, or with its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stack.checkpoint import folders, read
from stack.cli import main
from stack.config.load import load_recipe
from stack.fdistill.algorithm import FDistill
from stack.train.build_distill import build_distill
from tests.cli.refusal import refused
from tests.pipeline import (
    World,
    assert_same_state,
    copy,
    finish,
    metrics_of,
    recipe_fields,
    saved_steps,
    state_of,
    tree,
    write_recipe,
)

# Going on from an earlier step.


def test_a_resume_from_an_earlier_step(
    tmp_path: Path, world: World, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ends as if nothing had been, and removes nothing."""
    run = copy(finished, tmp_path / "run")
    last = folders.step_folder(run / "checkpoints", 6)
    before = tree(last)
    finish(tmp_path, recipe_fields(world), "--resume", "--step", "4")
    told = capsys.readouterr().out
    [aside] = (run / "checkpoints").glob("before-*")
    assert "after iteration 4" in told
    assert f"later checkpoints are now in {aside}" in told
    assert tree(aside / last.name) == before
    assert saved_steps(run) == [4, 6]
    assert tree(last) != before, "it has been saved again"
    assert_same_state(run, finished)
    assert metrics_of(run) == metrics_of(finished)


REFUSED_STEPS = [
    (["--step", "4"], "command line: --step: 4: goes with --resume"),
    (
        ["--resume", "--step", "5"],
        "{run}/checkpoints/step-0000005: no such checkpoint; there are steps 4, 6",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED_STEPS, ids=str)
def test_steps_that_are_refused(
    tmp_path: Path,
    world: World,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    run = copy(finished, tmp_path / "run")
    recipe, before = write_recipe(tmp_path, recipe_fields(world)), tree(run)
    assert refused(capsys, "distill", recipe, *options) == message.format(run=run)
    assert tree(run) == before


def test_a_damaged_step_is_refused_and_nothing_put_aside(
    tmp_path: Path, world: World, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(finished, tmp_path / "run")
    (folders.step_folder(run / "checkpoints", 4) / "state.json").unlink()
    recipe, before = write_recipe(tmp_path, recipe_fields(world)), tree(run)
    told = refused(capsys, "distill", recipe, "--resume", "--step", "4")
    assert "step-0000004: state.json is missing; there are steps 4, 6" in told
    assert tree(run) == before


# Forks.


def test_a_fork_of_an_earlier_step_ends_as_the_run_did(
    tmp_path: Path, world: World, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole state comes along; the old run is only read."""
    before = tree(finished)
    source = finished / "checkpoints" / "step-0000004"
    run = finish(tmp_path, recipe_fields(world), "--fork", source)
    told = capsys.readouterr().out
    assert f"forking {source}\n" in told
    assert " there, " not in told, "no field differs"
    assert_same_state(run, finished)
    assert list(metrics_of(run)) == [5, 6]
    assert saved_steps(run) == [6]
    assert tree(finished) == before


def test_a_fork_may_be_of_another_identity(
    tmp_path: Path, world: World, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what differs, goes on with counters and stream, and is a run of its own."""
    before, new = tree(finished), tmp_path / "new"
    recipe = write_recipe(tmp_path, recipe_fields(world))
    changed = [f"out={new}", "iterations=8", "divergence=fkl", "guidance=3.0"]
    assert main(["distill", str(recipe), "--fork", str(finished), *changed]) == 0
    told = capsys.readouterr().out
    assert f"forking {finished}/checkpoints/step-0000006\n" in told
    differing = [line.strip() for line in told.splitlines() if " there, " in line]
    assert differing == [
        "divergence: 'jensen_shannon' there, 'forward_kl' here",
        "guidance: 1.75 there, 3.0 here",
    ]
    _, state = state_of(new)
    assert state["iteration"] == 8
    assert state["task"] == {
        "steps": {"student": 4, "fake": 8, "heads": 8},
        "averages": {"ema_0.9": 4},
    }
    assert list(metrics_of(new)) == [7, 8]
    assert tree(finished) == before
    assert main(["distill", str(recipe), "--resume", *changed, "iterations=9"]) == 0
    assert state_of(new)[1]["iteration"] == 9


def test_a_fork_does_not_write_into_a_run(
    tmp_path: Path, world: World, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(finished, tmp_path / "run")
    recipe, before = write_recipe(tmp_path, recipe_fields(world)), tree(run)
    assert "holds a run already" in refused(capsys, "distill", recipe, "--fork", run)
    assert tree(run) == before


@pytest.mark.parametrize("missing", ["run", "checkpoint"])
def test_a_fork_of_what_is_not_there(
    tmp_path: Path,
    world: World,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    missing: str,
) -> None:
    """One line, and the same command with the right name works."""
    source = tmp_path / "gone"
    source = source if missing == "run" else finished / "checkpoints" / "step-0000005"
    recipe = write_recipe(tmp_path, recipe_fields(world))
    told = refused(capsys, "distill", recipe, "--fork", source)
    assert told.startswith(f"command line: --fork: {source}: ")
    assert main(["distill", str(recipe), "--fork", str(finished), "iterations=7"]) == 0


class PowerCutError(Exception):
    """Ends a run with nothing saved."""


def test_a_fork_that_was_cut_short_before_its_first_checkpoint_goes_on_as_a_fork(
    tmp_path: Path, world: World, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(write_recipe(tmp_path, recipe_fields(world)))
    command = ["distill", recipe, "--fork", str(finished / "checkpoints" / "step-0000004")]

    def cut(*_: Any) -> None:
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(FDistill, "iteration", cut)
        with pytest.raises(PowerCutError):
            main(command)
    assert main([*command, "--resume"]) == 0
    assert_same_state(tmp_path / "run", finished)


# Warm starts.


def test_a_warm_start_from_nothing_claims_no_folder(
    tmp_path: Path, world: World, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mistake mended, the same command goes."""
    recipe = write_recipe(tmp_path, recipe_fields(world))
    line = refused(capsys, "distill", recipe, f"init_from={tmp_path}/nowhere")
    assert line.startswith(f"{recipe}: init_from: {tmp_path}/nowhere: checkpoints/: none yet")
    assert not (tmp_path / "run").exists()
    assert main(["distill", str(recipe), f"init_from={finished}", "iterations=1"]) == 0


def unfinished(finished: Path, folder: Path, last: str) -> Path:
    """A copy of the run that has not come to its end: stopped early, or its last save damaged."""
    run = copy(finished, folder)
    whole = folders.step_folder(run / "checkpoints", 6)
    if last == "gone":
        shutil.rmtree(whole)
    else:
        (whole / "state.json").unlink()
    return run


@pytest.mark.parametrize("last", ["gone", "damaged"])
def test_a_warm_start_from_a_run_that_has_not_ended(
    tmp_path: Path, world: World, finished: Path, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only if its checkpoint is named; the refusal says which, and claims no folder."""
    source = unfinished(finished, tmp_path / "source", last)
    recipe = write_recipe(tmp_path, recipe_fields(world))
    newest = source / "checkpoints" / "step-0000004"
    assert refused(capsys, "distill", recipe, f"init_from={source}", "iterations=1") == (
        f"{recipe}: init_from: {source}: not at its end: the newest whole checkpoint is of "
        "iteration 4 of 6; go on with that run by --resume, or name the checkpoint to take: "
        f"init_from={newest}"
    )
    assert not (tmp_path / "run").exists()
    assert main(["distill", str(recipe), f"init_from={newest}", "iterations=1"]) == 0
    assert f"init_from: {newest}\n" in capsys.readouterr().out


def test_a_warm_start_says_what_it_takes(
    tmp_path: Path, world: World, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(tmp_path, recipe_fields(world, init_from=str(finished)), "iterations=1")
    told = capsys.readouterr().out
    assert told.count(f"init_from: {finished}/checkpoints/step-0000006\n") == 1


def test_a_warm_start_from_checkpoints_alone(
    tmp_path: Path, world: World, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copy(finished, tmp_path / "source")
    (source / "recipe.yaml").unlink()
    recipe = write_recipe(tmp_path, recipe_fields(world, init_from=str(source)))
    line = refused(capsys, "distill", recipe)
    assert line == f"{recipe}: init_from: {source}: recipe.yaml: missing; not the folder of a run"


@pytest.mark.parametrize("part", ["", "checkpoints/step-0000004"])
def test_a_warm_start_takes_the_weights_over(
    tmp_path: Path, world: World, finished: Path, part: str
) -> None:
    """Of all trained networks, and no more: moments, counters and averages begin anew."""
    fields = recipe_fields(world, divergence="fkl", init_from=str(finished / part))
    task = build_distill(load_recipe(write_recipe(tmp_path, fields))).task
    cold = {name: value.clone() for name, value in task.tensors().items()}
    task.begin()
    found = task.tensors()
    folder = finished / (part or "checkpoints/step-0000006")
    stored = read.read_tensors(folder, "")
    weights = {
        name
        for name in found
        if name.startswith(("student.", "fake.", "heads.")) and ".optimizer." not in name
    }
    assert {name.split(".")[0] for name in weights} == {"student", "fake", "heads"}
    assert [name for name in weights if not torch.equal(found[name], stored[name])] == []
    moved = {name.split(".")[0] for name in weights if not torch.equal(found[name], cold[name])}
    assert moved == {"student", "fake", "heads"}
    moments = [value for name, value in found.items() if ".optimizer." in name]
    assert moments
    assert not any(value.any() for value in moments)
    averages = [name for name in found if name.startswith("ema_0.9.")]
    assert averages
    for name in averages:
        assert torch.equal(found[name], stored["student." + name.removeprefix("ema_0.9.")]), name
    assert any(not torch.equal(found[name], stored[name]) for name in averages)
    assert task.counters() == {
        "steps": {"student": 0, "fake": 0, "heads": 0},
        "averages": {"ema_0.9": 0},
    }
