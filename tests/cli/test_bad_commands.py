"""Bad recipes, folders and disks: one line that names the fault, and nothing written over."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from stack.cli import main
from stack.util import exits
from tests.cli.refusal import refused
from tests.pipeline import (
    World,
    pretrain_fields,
    recipe_fields,
    start,
    tree,
    write_recipe,
)

RECIPES: list[tuple[str, list[str], str]] = [
    # verb, overrides, the message behind the file's name or "command line"
    ("distill", ["guidence=2"], "command line: guidence: unknown field; did you mean guidance?"),
    ("distill", ["iterations=0"], "command line: iterations: should be greater than 0 (got 0)"),
    ("distill", ["device=tpu9"], "{recipe}: device: tpu9: "),
    (
        "distill",
        ["gan.resolutions=[7]"],
        "{recipe}: gan.resolutions: 7: the UNet has feature maps of",
    ),
    (
        "distill",
        ["parallel.accumulation=3"],
        "{recipe}: parallel.accumulation: 1 ranks of 3 micro-batches do not divide",
    ),
    (
        "distill",
        ["times.score=[20, 1200]"],
        "{recipe}: times.score: ends at 1200, but the teacher's last time is 999",
    ),
    (
        "distill",
        ["data.global_batch=53"],
        "{recipe}: data.global_batch: {data} has 52 samples, fewer than",
    ),
    ("pretrain", [], "{recipe}: job: the recipe is for stack distill, not for stack pretrain"),
]


@pytest.mark.parametrize(("verb", "overrides", "message"), RECIPES, ids=str)
def test_bad_recipe(
    tmp_path: Path,
    world: World,
    occupied: Path,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    overrides: list[str],
    message: str,
) -> None:
    recipe = write_recipe(tmp_path, recipe_fields(world))
    before = tree(tmp_path)
    line = refused(capsys, verb, recipe, *overrides, "--overwrite")
    assert line.startswith(message.format(recipe=recipe, data=world.data))
    assert tree(tmp_path) == before


def test_a_recipe_for_another_verb(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, pretrain_fields(world))
    line = refused(capsys, "distill", recipe)
    assert line == f"{recipe}: job: the recipe is for stack pretrain, not for stack distill"


@pytest.mark.parametrize("options", [[], ["--resume"]], ids=str)
def test_an_occupied_run_folder(
    tmp_path: Path,
    world: World,
    occupied: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    recipe = write_recipe(tmp_path, recipe_fields(world))
    before = tree(occupied)
    assert refused(capsys, "distill", recipe, *options).startswith(f"{occupied}")
    assert tree(occupied) == before


@pytest.mark.parametrize("verb", ["sample", "export", "evaluate", "report"])
@pytest.mark.parametrize("what", ["missing", "empty", "no recipe"])
def test_verbs_on_what_is_not_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, what: str
) -> None:
    run = tmp_path / "run"
    if what != "missing":
        run.mkdir()
    if what == "no recipe":
        (run / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    assert refused(capsys, verb, run).startswith(f"{run}")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("verb", ["sample", "export", "evaluate"])
def test_verbs_on_a_run_without_a_checkpoint(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(write_recipe(tmp_path, recipe_fields(world)), run / "recipe.yaml")
    assert refused(capsys, verb, run).startswith(
        f"{run}: checkpoints/: none yet; run stack distill"
    )


def test_sample_into_what_is_no_picture(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "sample", "runs/x", "--out", "grid")
    assert line == "command line: --out: grid does not end in .png"


def test_show_config_without_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "show-config").startswith("command line: RECIPE: missing")


def test_a_disk_that_refuses(
    tmp_path: Path,
    world: World,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "run"))

    monkeypatch.setattr("stack.train.trainer.write_atomic", refuse)
    line = refused(capsys, "distill", write_recipe(tmp_path, recipe_fields(world)))
    assert line == f"{tmp_path}/run: Read-only file system"


def test_a_bug_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ZeroDivisionError(), OSError(errno.EBADF, "bad")):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("stack.arguments.training.load", fail)
        with pytest.raises(type(error)):
            main(["distill", "x.yaml"])


def test_ctrl_c_before_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stack.arguments.training.load", interrupt)
    assert main(["distill", "x.yaml"]) == exits.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("fault", ["a misspelt field", "an occupied run folder"])
def test_as_a_process(tmp_path: Path, world: World, occupied: Path, fault: str) -> None:
    """Its whole stderr is the one line; libraries and all."""
    recipe = write_recipe(tmp_path, recipe_fields(world))
    overrides = ["optim.student.lrr=1"] if fault == "a misspelt field" else []
    before = tree(tmp_path)
    out, err = (process := start(["distill", recipe, *overrides])).communicate()
    assert process.returncode == 2
    lines = [line for line in err.splitlines() if "XFORMERS" not in line]
    expected = {
        "a misspelt field": "command line: optim.student.lrr: unknown field; did you mean",
        "an occupied run folder": f"{occupied}: holds a run already; give --resume",
    }
    assert lines[-1].startswith(f"error: {expected[fault]}")
    assert out == ""
    assert "Traceback" not in err
    assert tree(tmp_path) == before
