"""``stack evaluate`` on EDM networks: a run's teacher and student, and folders, through classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from stack.cli import main
from tests.cli.refusal import refused
from tests.edm_world import CLASSES, SIDE, EdmWorld, distill_fields, make_edm_world
from tests.evaluate.networks import untrained_classifier
from tests.pipeline import logged_rows, write_recipe

MEASURES = ("frechet_distance", "recall", "precision", "class_accuracy")


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> EdmWorld:
    return make_edm_world(tmp_path_factory.mktemp("edm"))


@pytest.fixture(scope="module")
def run(small_world: EdmWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edm_run")
    recipe = write_recipe(folder, distill_fields(small_world, iterations=2))
    assert main(["distill", str(recipe)]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def suite(small_world: EdmWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    untrained_classifier(folder / "judge", CLASSES, SIDE)
    told = {
        "name": "classes",
        "classes": CLASSES,
        "count": 48,
        "measures": list(MEASURES),
        "reference": str(small_world.data),
        "networks": {"classifier": "judge"},
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(told))
    return folder / "suite.yaml"


def test_a_run_through_classes(run: Path, suite: Path) -> None:
    command = ["evaluate", str(run), "--suite", str(suite), "--teacher", "ode", "sde"]
    assert main([*command, "--steps", "6"]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert (found["samples"], found["reference"]["count"]) == (48, 40)
    assert found["teacher_sampler"] == "Heun, 6 steps"
    assert found["teacher_sde"]["sampler"] == "stochastic Heun, 6 steps, S_churn 30"
    for name, nfe in (("teacher", 11), ("teacher_sde", 11), ("student", 1)):
        assert found[name]["nfe"] == nfe
        assert set(found[name]["intervals"]) == set(MEASURES)
        assert 0 <= found[name]["class_accuracy"] <= 1
    distances = [found[name]["frechet_distance"] for name in ("teacher", "teacher_sde", "student")]
    assert len(set(distances)) == 3
    assert found["classifier"]["tested"] == 7
    assert found["speedup"] > 0


@pytest.mark.parametrize(("steps", "name", "nfe"), [(3, "teacher", 5), (1, "student", 1)])
def test_a_networks_folder(
    small_world: EdmWorld,
    run: Path,
    suite: Path,
    tmp_path: Path,
    steps: int,
    name: str,
    nfe: int,
) -> None:
    """The teacher's, with as many steps, is the run's; in one step it counts as a student."""
    command = ["evaluate", str(small_world.teacher), "--suite", str(suite), "--out", str(tmp_path)]
    assert main([*command, "--steps", str(steps)]) == 0
    found = json.loads((tmp_path / "classes.json").read_text())
    assert set(found) & {"teacher", "student"} == {name}
    assert found[name]["nfe"] == nfe
    assert main(["evaluate", str(run), "--suite", str(suite)]) == 0
    of_run = json.loads((run / "evaluation.json").read_text())["teacher"]
    same = found[name]["frechet_distance"] == pytest.approx(of_run["frechet_distance"], rel=1e-4)
    assert same == (steps == 3)


def test_an_exported_student_is_the_runs(run: Path, suite: Path, tmp_path: Path) -> None:
    """In one step, with no word of it on the command line."""
    assert main(["export", str(run), "--out", str(tmp_path / "student")]) == 0
    results = []
    for target, options in ((tmp_path / "student", []), (run, ["--teacher", "none"])):
        file = tmp_path / f"{len(results)}.json"
        where = ["--out", str(tmp_path), "--json", str(file)]
        assert main(["evaluate", str(target), "--suite", str(suite), *options, *where]) == 0
        results.append(json.loads(file.read_text()))
        assert set(results[-1]) & {"teacher", "student"} == {"student"}
    exported, of_run = (result["student"] for result in results)
    assert (exported["nfe"], of_run["nfe"]) == (1, 1)
    for name in MEASURES:
        assert exported[name] == pytest.approx(of_run[name], rel=1e-4)


def test_networks_without_classes(
    tmp_path: Path, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Teacher and student of a run, and a folder: of the classes only the real pictures are."""
    world = make_edm_world(tmp_path, label_dim=0)
    recipe = write_recipe(tmp_path / "r", distill_fields(world, iterations=2))
    assert main(["distill", str(recipe)]) == 0
    run = tmp_path / "r" / "run"
    quality = {"frechet_distance", "recall", "precision"}
    command = ["--suite", str(suite), *(f"--measure={name}" for name in sorted(quality))]
    command += ["--out", str(tmp_path), "--json", str(tmp_path / "found.json")]
    for target, names in ((run, ("teacher", "student")), (world.teacher, ("teacher",))):
        assert main(["evaluate", str(target), *command]) == 0
        found = json.loads((tmp_path / "found.json").read_text())
        for name in names:
            assert set(found[name]["intervals"]) == quality
            assert found[name]["frechet_distance"] > 0
    capsys.readouterr()
    line = refused(capsys, "evaluate", run, *command, "--measure", "class_accuracy")
    assert line == "--measure: class_accuracy: the network has no classes"


def test_a_quick_evaluation_without_classes(tmp_path: Path, suite: Path) -> None:
    """While such a network trains."""
    world = make_edm_world(tmp_path, label_dim=0)
    quick = {"quick_every": 2, "quick_samples": 24, "quick_suite": str(suite)}
    fields = distill_fields(world, evaluation=quick, iterations=4)
    assert main(["distill", str(write_recipe(tmp_path / "r", fields))]) == 0
    name = "quick/frechet_distance"
    rows = logged_rows(tmp_path / "r" / "run")
    scores = {row["step"]: row[name] for row in rows if name in row}
    assert list(scores) == [2, 4]
    assert all(score > 0 for score in scores.values())


REFUSED = [
    # arguments, what the line begins with
    (["--suite", "digits"], "--suite: digits: "),
    (["--guidance", "2"], "--guidance: 2: an EDM network has none"),
]


@pytest.mark.parametrize(("arguments", "begins"), REFUSED)
def test_what_an_edm_network_has_not(
    run: Path,
    suite: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    begins: str,
) -> None:
    told = refused(capsys, "evaluate", run, "--suite", suite, *arguments)
    assert told.startswith(begins)


def test_a_class_that_the_network_does_not_know(
    run: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = yaml.safe_load(suite.read_text()) | {"classes": CLASSES + 1}
    told["networks"] = {"classifier": str(suite.parent / "judge")}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(told))
    line = refused(capsys, "evaluate", run, "--suite", tmp_path / "suite.yaml")
    assert line == f"class: '{CLASSES}' is not one of 0 to {CLASSES - 1}"
