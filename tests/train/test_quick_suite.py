"""The quick evaluation through a suite's file: its score, and no trace in the run."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from stack.cli import main
from stack.config.load import load_recipe
from stack.config.schema import DistillRecipe
from stack.parallel.collectives import ALONE
from stack.train.build_quick import quick_measure
from tests.cli.refusal import refused
from tests.evaluate.networks import untrained_classifier
from tests.pipeline import (
    World,
    assert_same_state,
    caption,
    finish,
    logged_rows,
    metrics_of,
    recipe_fields,
    write_recipe,
)

QUICK = {"quick_every": 2, "quick_samples": 24, "batch": 8}


@pytest.fixture(scope="module")
def suite(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    untrained_classifier(folder / "judge")
    (folder / "captions.txt").write_text("\n".join(caption(number) for number in range(30)))
    told = {
        "name": "tiny",
        "prompts": "captions.txt",
        "measures": ["frechet_distance"],
        "reference": str(world.shards),
        "networks": {"classifier": "judge"},
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(told))
    return folder / "suite.yaml"


@pytest.fixture(scope="module")
def plain(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a quick evaluation."""
    return finish(tmp_path_factory.mktemp("plain"), recipe_fields(world))


def scores(run: Path) -> list[tuple[int, float]]:
    name = "quick/frechet_distance"
    return [(row["step"], row[name]) for row in logged_rows(run) if name in row]


@pytest.mark.parametrize("kind", ["digits", "suite"])
def test_a_run_ends_bit_for_bit_as_without(
    kind: str, tmp_path: Path, world: World, suite: Path, plain: Path
) -> None:
    """Weights, averages, optimizers, bins of the ratio, random state of the generator, position in
    the data, and every figure that was logged."""
    wanted: dict[str, Any] = QUICK | ({"quick_suite": str(suite)} if kind == "suite" else {})
    run = finish(tmp_path, recipe_fields(world, evaluation=wanted))
    found = scores(run)
    assert [step for step, _ in found] == [2, 4, 6]
    assert all(score > 0 for _, score in found)
    for row in (row for row in logged_rows(run) if "quick/frechet_distance" in row):
        assert -1 <= row["quick/in_batch_similarity"] <= 1
        if kind == "digits":
            assert 0 <= row["quick/mode_entropy"] <= log(4)
    assert_same_state(run, plain)
    logged, expected = metrics_of(run), metrics_of(plain)
    for step, row in expected.items():
        assert {name: logged[step].get(name, value) for name, value in row.items()} == row


class Collapsed:
    """A student with one picture, or one for each caption."""

    nfe, device = 1, torch.device("cpu")

    def __init__(self, told: bool) -> None:
        self.told = told

    def pictures(self, conditions: Sequence[str], indices: Tensor, seed: int) -> Tensor:
        levels = [len(condition) * self.told for condition in conditions]
        return (torch.tensor(levels) * 7 % 255).byte()[:, None, None, None].expand(-1, 3, 16, 16)


@pytest.mark.parametrize("told", [False, True])
def test_lost_modes_are_seen(tmp_path: Path, world: World, told: bool) -> None:
    """What the alerts look at, of pictures that do not depend on the noise."""
    fields = recipe_fields(world, evaluation=QUICK) | {"out": str(tmp_path / "run")}
    recipe = load_recipe(write_recipe(tmp_path, fields))
    assert isinstance(recipe, DistillRecipe)
    found = quick_measure(recipe, Collapsed(told), ALONE)()
    assert found["in_batch_similarity"] == pytest.approx(1, abs=1e-6)
    if not told:
        assert found["mode_entropy"] == 0


def test_the_score_is_that_of_stack_evaluate(tmp_path: Path, world: World, suite: Path) -> None:
    """Of the average's weights, the same prompts, noise and pictures."""
    import json

    run = finish(tmp_path, recipe_fields(world, evaluation=QUICK | {"quick_suite": str(suite)}))
    command = ["evaluate", str(run), "--suite", str(suite), "--subset", "24", "--teacher", "none"]
    assert main(command) == 0
    found = json.loads((run / "evaluations" / "tiny-subset24-no-teacher.json").read_text())
    assert scores(run)[-1] == (6, pytest.approx(found["student"]["frechet_distance"], rel=1e-3))


def test_a_suite_whose_network_is_missing(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = QUICK | {"quick_suite": "coco30k"}
    evaluation["networks"] = {"inception": str(tmp_path / "inception.pt")}
    recipe = write_recipe(tmp_path, recipe_fields(world, evaluation=evaluation))
    told = refused(capsys, "distill", recipe)
    assert told.startswith(f"{tmp_path}/inception.pt: no such file; inception comes from https")
    assert told.endswith("python -m stack fetch RECIPE brings")
    assert not (tmp_path / "run").exists()
