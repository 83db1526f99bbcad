"""What a run keeps beside its weights: averages, scores, where it ran."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from stack.checkpoint import folders, read
from stack.cli import main
from stack.train import build_sd
from tests.cli.refusal import refused
from tests.pipeline import (
    World,
    assert_same_state,
    copy,
    finish,
    logged_rows,
    recipe_fields,
    same_tensors,
    saved_steps,
    write_recipe,
)


def test_a_warm_start_that_does_not_fit(
    tmp_path: Path, world: World, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gan = {"weight": 0.01, "resolutions": [8, 4], "width": 16}
    recipe = write_recipe(tmp_path, recipe_fields(world, gan=gan, init_from=str(finished)))
    folder = finished / "checkpoints" / "step-0000006"
    told = refused(capsys, "distill", recipe)
    assert told.startswith(f"{recipe}: init_from: {folder}: heads.heads.0.")
    assert told.endswith("does not fit this run's network")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_warm_start_from_nowhere(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    recipe = write_recipe(tmp_path, recipe_fields(world, init_from=str(gone)))
    assert refused(capsys, "distill", recipe).startswith(f"{recipe}: init_from: {gone}: ")


def test_a_resume_does_not_need_where_the_run_started_from(
    tmp_path: Path, world: World, finished: Path
) -> None:
    source = copy(finished, tmp_path / "source")
    fields = recipe_fields(world, init_from=str(source))
    whole = finish(tmp_path / "whole", fields, "iterations=4")
    finish(tmp_path, fields, "iterations=2")
    shutil.rmtree(source)
    run = finish(tmp_path, fields, "--resume", "iterations=4")
    assert_same_state(run, whole)


# The quick evaluation, and which checkpoints stay.


def scripted(scores: Iterator[float]) -> Any:
    """In the place of what measures the student."""
    return lambda recipe, student, ranks: lambda: {"frechet_distance": next(scores)}


def test_the_best_checkpoint_stays(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every evaluation has a checkpoint with its score, and a row of the metrics."""
    scores = [3.0, 1.0, 5.0, 2.0, 4.0, 6.0]
    monkeypatch.setattr(build_sd, "quick_measure", scripted(iter(scores)))
    fields = recipe_fields(world, evaluation={"quick_every": 1})
    fields["checkpoint"] = {"every": 6, "keep_last": 2, "keep_best": 1}
    run = finish(tmp_path, fields)
    assert saved_steps(run) == [2, 5, 6]
    for step in (2, 5, 6):
        assert (
            folders.mark(folders.step_folder(run / "checkpoints", step))["score"]
            == (scores[step - 1])
        )
    found = [row for row in logged_rows(run) if "quick/frechet_distance" in row]
    assert [(row["step"], row["quick/frechet_distance"]) for row in found] == list(
        enumerate(scores, 1)
    )


def test_the_quick_evaluation_leaves_no_trace(tmp_path: Path, world: World, finished: Path) -> None:
    """The judge is trained on the data, once for all runs of a folder."""
    fields = recipe_fields(world, evaluation={"quick_every": 3, "quick_samples": 20, "batch": 8})
    run = finish(tmp_path, fields)
    found = [row for row in logged_rows(run) if "quick/frechet_distance" in row]
    assert [row["step"] for row in found] == [3, 6]
    assert all(row["quick/frechet_distance"] > 0 for row in found)
    assert (tmp_path / "judge.safetensors").is_file()
    assert_same_state(run, finished)


# Averages.


@pytest.fixture(scope="module")
def two_averages(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = recipe_fields(world, ema_also=[0.3], student_every=1)
    return finish(tmp_path_factory.mktemp("averages"), fields)


EXPORTS = [
    # --ema, tensors of the checkpoint
    (None, "ema_0.9"),
    ("0.9", "ema_0.9"),
    ("0.3", "ema_0.3"),
    ("none", "student"),
]


@pytest.mark.parametrize(("chosen", "name"), EXPORTS)
@pytest.mark.parametrize("part", ["", "checkpoints/step-0000004"])
def test_export_of_an_average(
    tmp_path: Path, two_averages: Path, chosen: str | None, name: str, part: str
) -> None:
    options = ["--ema", chosen] if chosen else []
    out = tmp_path / "out"
    assert main(["export", str(two_averages / part), "--out", str(out), *options]) == 0
    written = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    folder = two_averages / (part or "checkpoints/step-0000006")
    stored = {
        each: read.read_tensors(folder, f"{each}.unet.") for each in {row[1] for row in EXPORTS}
    }
    assert same_tensors(written, {key: stored[name][key] for key in written}) == []
    for other in stored.keys() - {name}:
        assert same_tensors(written, {key: stored[other][key] for key in written})


def test_export_of_an_average_that_the_run_does_not_have(
    tmp_path: Path, two_averages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    told = refused(capsys, "export", two_averages, "--out", out, "--ema", "0.7")
    assert told == "command line: --ema: 0.7: the run has 0.9, 0.3, none"
    assert not out.exists()


# What each start ran on.


def test_provenance_has_a_line_for_each_start(tmp_path: Path, world: World, finished: Path) -> None:
    copy(finished, tmp_path / "run")
    run = finish(tmp_path, recipe_fields(world, iterations=7), "--resume")
    text = (run / "provenance.jsonl").read_text()
    assert text.startswith((finished / "provenance.jsonl").read_text())
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert {"git", "code", "packages", "devices", "seed", "time", "command"} <= line.keys()
        assert line["packages"]["torch"] == version("torch")
        assert len(line["devices"]) == 1
        assert (line["seed"], line["backend"]) == (0, "none")
    code = folders.mark(folders.step_folder(run / "checkpoints", 7))["code"]
    assert lines[1]["code"] == code
