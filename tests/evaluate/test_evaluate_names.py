"""Where ``stack evaluate`` leaves its results, and what replaces what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stack.cli import main
from tests.evaluate.suite_files import brief_run, save_parts, save_suite
from tests.pipeline import World


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brief_run(world, tmp_path_factory.mktemp("names"))


@pytest.fixture(scope="module")
def parts(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite's file with everything that it names beside it."""
    folder = save_parts(tmp_path_factory.mktemp("named_parts"), captions=20)
    measures = ["recall", "precision", "clip_score"]
    return save_suite(folder, world, count=16, measures=measures)


@pytest.fixture(scope="module")
def measured(run: Path, parts: Path) -> dict[str, Any]:
    assert main(["evaluate", str(run), "--suite", str(parts / "suite.yaml")]) == 0
    return json.loads((run / "evaluations" / "tiny.json").read_text())


QUICK_LOOKS = [
    # options, what the result's name has after the suite's
    (["--subset", "12"], "subset12"),
    (["--measure", "recall", "--measure", "clip_score"], "clip_score-recall"),
    (["--teacher", "none"], "no-teacher"),
    (["--teacher", "sde", "--subset", "12"], "subset12-sde"),
    (["--seed", "1", "--resolution", "16"], "seed1-resolution16"),
]


@pytest.mark.parametrize(("options", "part"), QUICK_LOOKS)
def test_a_quick_look_leaves_the_whole_result_alone(
    run: Path,
    parts: Path,
    measured: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    part: str,
) -> None:
    command = ["evaluate", str(run), "--suite", str(parts / "suite.yaml")]
    assert main([*command, *options]) == 0
    file = run / "evaluations" / f"tiny-{part}.json"
    found = json.loads(file.read_text())
    assert (found["suite"], found["whole"]) == (f"tiny-{part}", False)
    assert capsys.readouterr().out.endswith(f"results in {file}\n")
    for whole in (run / "evaluation.json", run / "evaluations" / "tiny.json"):
        assert json.loads(whole.read_text()) == measured


def test_a_quick_look_is_the_runs_result_until_there_is_a_whole_one(
    run: Path, parts: Path, measured: dict[str, Any], tmp_path: Path
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied, ignore=shutil.ignore_patterns("evaluation*.json"))
    command = ["evaluate", str(copied), "--suite", str(parts / "suite.yaml")]
    for options, suite in [
        (["--teacher", "none"], "tiny-no-teacher"),
        (["--subset", "12", "--teacher", "none"], "tiny-subset12-no-teacher"),
        ([], "tiny"),
        (["--teacher", "none"], "tiny"),
        (["--subset", "16", "--teacher", "ode", "sde"], "tiny"),
    ]:
        assert main([*command, *options]) == 0
        assert json.loads((copied / "evaluation.json").read_text())["suite"] == suite


def test_pipelines_of_one_name_keep_their_own_results(
    run: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside each one's folder, and not among the run's own results."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        assert main(["export", str(run), "--out", str(Path("runs", name, "student"))]) == 0
    for pipeline in ("runs/a/student", "runs/b/student/", "."):
        if pipeline == ".":
            monkeypatch.chdir(tmp_path / "runs" / "b" / "student")
        command = ["evaluate", pipeline, "--suite", str(parts / "suite.yaml")]
        assert main([*command, "--measure", "clip_score", "--subset", "4"]) == 0
    found = {
        str(file.relative_to(tmp_path)): json.loads(file.read_text())["target"]
        for file in sorted(tmp_path.rglob("tiny*.json"))
    }
    assert found == {
        "runs/a/evaluations/student/tiny-subset4-clip_score.json": "runs/a/student",
        "runs/b/evaluations/student/tiny-subset4-clip_score.json": ".",
    }


HUB = [
    # id, revision, where results go
    ("one/model", None, "runs/evaluations/one/model"),
    ("two/model", None, "runs/evaluations/two/model"),
    ("two/model", "c0ffee", "runs/evaluations/two/model@c0ffee"),
]


@pytest.mark.parametrize(("name", "revision", "place"), HUB)
def test_models_of_the_hub_keep_their_own_results(
    monkeypatch: pytest.MonkeyPatch, name: str, revision: str | None, place: str
) -> None:
    found: list[Path] = []
    monkeypatch.setattr(
        "stack.verbs.evaluate_suite.evaluate_suite", lambda options, *_: found.append(options.out)
    )
    pinned = ["--revision", revision] if revision else []
    assert main(["evaluate", name, "--suite", "parti", *pinned]) == 0
    assert found == [Path(place)]
