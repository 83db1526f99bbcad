"""``stack figures``: which runs serve which figure, and everything from toy runs."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stack.cli import main
from stack.config.load import load_recipe
from stack.config.schema import DistillRecipe
from stack.report.history import History
from stack.util.errors import UserError
from stack.verbs import figures as verb
from stack.verbs.figures import FIGURES, Wish, figures
from stack.verbs.figures_runs import Run, alike, labelled, seeded
from tests.forked import ROOT

SMALL = ["iterations=6", "global_batch=64", "log.every=1", "log.sample_every=3"]
SMALL += ["evaluation.quick_every=2", "optim.student.warmup=1"]
TOY = [text for override in SMALL for text in ("--toy", override)]
NEEDS_PICTURES = {"fig6b", "grids"}


def run_of(name: str, *overrides: str, folder: str = "", recipe: str = "toy2d_fkl") -> Run:
    found = load_recipe(ROOT / "recipes" / f"{recipe}.yaml", [*overrides, f"name={name}"])
    assert isinstance(found, DistillRecipe)
    return Run(Path(folder or name), found)


def test_runs_of_one_teacher_that_differ_go_together() -> None:
    a, b = run_of("a"), run_of("b", "divergence=rkl")
    other = run_of("other", "divergence=js", "teacher.modes=7")
    again = run_of("again", "seed=3")
    by = lambda run: run.divergence  # noqa: E731
    assert alike([other, a, b, again], by) == [a, b, again]
    assert alike([a, again], by) == []
    assert list(labelled([a, b, again], by)) == [
        "forward KL (a)",
        "reverse KL",
        "forward KL (again)",
    ]


def test_seeds_of_one_recipe_are_one_line() -> None:
    a, b = run_of("a"), run_of("b", "divergence=rkl")
    again, other = run_of("again", "seed=3"), run_of("other", "ratio.r_max=9")
    by = lambda run: run.divergence  # noqa: E731
    assert {line: list(runs) for line, runs in seeded([a, b, again], by).items()} == {
        "forward KL": ["a", "again"],
        "reverse KL": ["b"],
    }
    assert {line: list(runs) for line, runs in seeded([a, again, other], by).items()} == {
        "forward KL (a)": ["a", "again"],
        "forward KL (other)": ["other"],
    }


DRILL = [f"drill/seed-{seed}/runs/toy" for seed in range(3)]
"""Folders as make drill makes them: of one name, with recipes of one name."""


def test_runs_whose_folders_share_a_name_are_all_drawn() -> None:
    runs = [run_of("toy", f"seed={seed}", folder=folder) for seed, folder in enumerate(DRILL)]
    by = lambda run: run.divergence  # noqa: E731
    assert seeded(runs, by) == {"forward KL": dict(zip(DRILL, runs, strict=True))}
    assert list(labelled(runs, by)) == [f"forward KL ({folder})" for folder in DRILL]
    others = [run_of("toy", f"ratio.r_max={i + 9}", folder=f) for i, f in enumerate(DRILL)]
    assert list(seeded(others, by)) == [f"forward KL ({folder})" for folder in DRILL]


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    runs = [
        run_of("toy", folder=DRILL[0]),
        run_of("toy", folder=f"{DRILL[1]}/../../../seed-0/runs/toy"),
    ]
    with pytest.raises(UserError, match="given twice"):
        figures(Wish(runs, tmp_path, [], 0, 1, []), ["fig3"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("folders", "files"),
    [
        (DRILL[:2], ["grid_drill-seed-0-runs-toy", "grid_drill-seed-1-runs-toy"]),
        (["runs/w1.5", "runs/w1.75"], ["grid_w1-5", "grid_w1-75"]),
        (["a-b/c", "a/b/c"], ["grid_1-a-b-c", "grid_2-a-b-c"]),
    ],
)
def test_every_run_has_a_grid_of_its_own(
    folders: list[str], files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what the networks would draw is made up."""

    def opened(folder: Path) -> tuple[Any, Any, Any]:
        return SimpleNamespace(name=str(folder)), SimpleNamespace(nfe=4), SimpleNamespace(nfe=1)

    monkeypatch.setattr(verb, "teacher_and_student", opened)
    monkeypatch.setattr(verb, "_pictures", lambda *_: np.zeros((1, 8, 8, 3), np.uint8))
    runs = [run_of("digits_js", folder=folder, recipe="digits_js") for folder in folders]
    figures(Wish(runs, tmp_path, ["a red one"], 0, 1, []), ["grids"])
    assert sorted(path.stem for path in tmp_path.glob("*.csv")) == sorted(files)
    for folder, file in zip(folders, files, strict=True):
        assert {row["run"] for row in rows_of(tmp_path / f"{file}.csv")} == {folder}


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("fig1", "--only: fig1: not one of fig2, fig3"),
        ("fig12", "--only: grids: needs a run with pictures"),
        ("fig3,fig6b", "--only: fig6b: needs two runs with pictures"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], only: str, message: str
) -> None:
    assert main(["figures", "--only", only, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figures", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fig. 5 from two toy runs of a few iterations."""
    out = tmp_path_factory.mktemp("some")
    command = ["figures", "--out", str(out), "--only", "fig5", "--samples", "100"]
    assert main([*command, *TOY]) == 0
    return out


def test_fresh_samples_have_weights_of_mean_one(some: Path) -> None:
    rows = rows_of(some / "fig5.csv")
    assert {row["run"] for row in rows} == {"toy_fkl, forward KL", "toy_js, Jensen–Shannon"}
    for name in {row["run"] for row in rows}:
        own = [row for row in rows if row["run"] == name]
        assert len(own) == 100
        assert np.mean([float(row["h"]) for row in own]) == pytest.approx(1, rel=1e-3)


def test_runs_that_are_given_are_the_ones_drawn(some: Path, tmp_path: Path) -> None:
    """Nothing is trained: the folder of toys stays away."""
    runs = [str(some / "toy" / name) for name in ("toy_fkl", "toy_js")]
    only = ["--only", "fig2,fig8,fig9", "--out", str(tmp_path)]
    assert main(["figures", *runs, *only]) == 0
    assert not (tmp_path / "toy").exists()
    titles = {row["line"] for row in rows_of(tmp_path / "fig9.csv")}
    assert titles == {"forward KL", "Jensen–Shannon"}
    assert {row["row"] for row in rows_of(tmp_path / "fig8.csv")} == titles | {"data"}
    assert len(rows_of(tmp_path / "fig2.csv")) == 160**2


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All figures from toy runs of a few iterations."""
    out = tmp_path_factory.mktemp("figures")
    assert main(["figures", "--out", str(out), "--samples", "100", *TOY]) == 0
    return out


@pytest.mark.slow
def test_every_figure_is_drawn_from_toys(drawn: Path) -> None:
    for name in FIGURES.keys() - NEEDS_PICTURES:
        with Image.open(drawn / f"{name}.png") as image:
            assert image.width > 600
            assert len(image.convert("L").getcolors() or []) > 8
        assert "<svg" in (drawn / f"{name}.svg").read_text()
        assert len(rows_of(drawn / f"{name}.csv")) > 3
    assert not [
        drawn / f"{name}.png" for name in NEEDS_PICTURES if (drawn / f"{name}.png").exists()
    ]


@pytest.mark.slow
def test_curves_are_those_of_the_logs(drawn: Path) -> None:
    rows = rows_of(drawn / "fig4b.csv")
    lines = {(row["line"], row["run"]) for row in rows}
    ends = ("", "_seed1", "_seed2")
    assert lines == {("with both normalisations", f"toy_fkl{end}") for end in ends} | {
        ("without normalisation", f"toy_fkl_plain{end}") for end in ends
    }
    rows = [r for r in rows if r["run"] == "toy_fkl_plain" and r["figure"] == "loss/gap"]
    history = Run.open(drawn / "toy" / "toy_fkl_plain").history
    assert isinstance(history, History)
    logged = history.curve("loss/gap").values
    np.testing.assert_allclose([float(row["value"]) for row in rows], logged, rtol=1e-5)
