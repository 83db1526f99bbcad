"""``stack ablate``: a tiny matrix, once and again, broken plans, and what a changed recipe does."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stack.cli import main
from stack.config.ablation import load_plan
from stack.verbs import ablate as verb
from tests.forked import ROOT

PLAN: dict[str, Any] = {
    "name": "tiny",
    "recipe": str(ROOT / "recipes" / "toy2d_fkl.yaml"),
    "seeds": [0, 1],
    "set": ["iterations=4", "evaluation.quick_every=2", "global_batch=32", "log.sample_every=0"],
    "axes": {
        "divergence": {"rkl": ["divergence=reverse_kl"], "js": ["divergence=jensen_shannon"]},
        "GAN loss": {"without": [], "with": {"set": ["gan.weight=0.5"]}},
    },
    "baseline": {"divergence": "rkl"},
    "evaluate": None,
    "metrics": {"distance": "log:quick/frechet_distance"},
}


def write_plan(folder: Path, **changes: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN | {"out": str(folder / "out")} | changes, sort_keys=False))
    return path


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands run here instead of in processes of their own, which take seconds to start."""
    ran: list[list[str]] = []

    def run(*arguments: str) -> int:
        ran.append(list(arguments))
        return main(arguments)

    monkeypatch.setattr(verb, "_command", run)
    return ran


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_matrix_is_run_once_and_told(tmp_path: Path, in_process: list[list[str]]) -> None:
    plan, out = write_plan(tmp_path), tmp_path / "out"
    assert main(["ablate", str(plan), "--json", str(tmp_path / "told.json")]) == 0
    assert [command[0] for command in in_process] == ["distill"] * 8
    rows = rows_of(out / "table.csv")
    assert len(rows) == 4
    assert {row["seeds"] for row in rows} == {"2"}
    logged = [
        json.loads(line)["quick/frechet_distance"]
        for seed in (0, 1)
        for line in (out / f"js-with-seed{seed}" / "metrics.jsonl").read_text().splitlines()
        if '"step": 4' in line and "quick" in line
    ]
    [found] = [r for r in rows if r["divergence"] == "js" and r["GAN loss"] == "with"]
    assert float(found["mean"]) == pytest.approx(sum(logged) / 2, rel=1e-5)
    assert found["baseline"] == "rkl / with"
    assert len(rows_of(out / "results.csv")) == 8
    assert len(json.loads((tmp_path / "told.json").read_text())["rows"]) == 4
    assert "| rkl |" in (out / "table.md").read_text()
    in_process.clear()
    before = (out / "table.csv").read_bytes()
    assert main(["ablate", str(plan)]) == 0
    assert in_process == []
    assert (out / "table.csv").read_bytes() == before


def test_what_failed_ends_it_and_is_done_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, statuses, ran = write_plan(tmp_path, seeds=[0]), iter([0, 85]), []

    def run(*arguments: str) -> int:
        status = next(statuses, 0)
        ran.append(arguments[arguments.index("--resume") + 1 :][-1])
        return status or main(arguments)

    monkeypatch.setattr(verb, "_command", run)
    assert main(["ablate", str(plan)]) == 85
    assert len(rows_of(tmp_path / "out" / "table.csv")) == 1
    assert main(["ablate", str(plan)]) == 0
    assert len(ran) == 5  # The first is not done again, the second is.
    assert len(rows_of(tmp_path / "out" / "table.csv")) == 4


def test_evaluations_are_kept_with_their_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(*arguments: str) -> int:
        ran.append(arguments[0])
        if arguments[0] == "distill":
            return main(arguments)
        given = dict(zip(arguments[2::2], arguments[3::2], strict=True))
        row = {"frechet_distance": float(given["--samples"]), "intervals": {}}
        Path(given["--json"]).write_text(json.dumps({"student": row}))
        return 0

    monkeypatch.setattr(verb, "_command", run)
    where = {"d": "student.frechet_distance"}
    changes = {"seeds": [0], "evaluate": {"samples": 50}, "metrics": where}
    assert main(["ablate", str(write_plan(tmp_path, **changes)), "--only", "js-with-"]) == 0
    assert ran == ["distill", "evaluate"]
    [row] = rows_of(tmp_path / "out" / "results.csv")
    assert row["d"] == "50"
    more = changes | {"evaluate": {"samples": 70}}
    assert main(["ablate", str(write_plan(tmp_path, **more)), "--only", "js-with-"]) == 0
    assert ran == ["distill", "evaluate", "evaluate"]
    [row] = rows_of(tmp_path / "out" / "results.csv")
    assert row["d"] == "70"


def test_a_changed_recipe_is_not_mixed_in(
    tmp_path: Path, in_process: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["ablate", str(write_plan(tmp_path)), "--only", "js-with-", "--seed", "0"])
    changed = write_plan(tmp_path, set=[*PLAN["set"], "student_every=3"])
    assert main(["ablate", str(changed), "--only", "js-with-"]) == 2
    assert "student_every: trained with 2, the plan says 3" in capsys.readouterr().err
    in_process.clear()
    assert main(["ablate", str(changed), "--only", "rkl-with-"]) == 2  # Another cell is meant.
    assert "student_every: trained with 2, the plan says 3" in capsys.readouterr().err
    assert in_process == []


def test_metrics_are_added_to_what_is_finished(
    tmp_path: Path, in_process: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    cell = ["--only", "js-with-", "--seed", "0"]
    main(["ablate", str(write_plan(tmp_path, set=[*PLAN["set"], "log.every=1"])), *cell])
    in_process.clear()
    metrics = {"end": "log:loss/gap", "half": "log:loss/gap@0.5", "all": "log:loss/gap@1"}
    plan = write_plan(tmp_path, metrics=metrics)
    assert main(["ablate", str(plan), "--table"]) == 0
    assert in_process == []
    [row] = rows_of(tmp_path / "out" / "results.csv")
    log = (tmp_path / "out" / "js-with-seed0" / "metrics.jsonl").read_text().splitlines()
    gaps = [found["loss/gap"] for found in map(json.loads, log) if "loss/gap" in found]
    assert len(gaps) >= 2
    late = gaps[-max(1, round(len(gaps) / 2)) :]
    expected = [gaps[-1], sum(late) / len(late), sum(gaps) / len(gaps)]
    found = [float(row[name]) for name in metrics]
    assert found == pytest.approx(expected, rel=1e-4)
    assert (
        main(["ablate", str(write_plan(tmp_path, metrics={"x": "log:loss/gab"})), "--table"]) == 2
    )
    told = capsys.readouterr().err
    assert "js-with-seed0/metrics.jsonl: log:loss/gab: not there, or no number; mend" in told


def test_a_metric_says_how_it_is_compared(tmp_path: Path, in_process: list[list[str]]) -> None:
    metrics = {"a": "log:loss/gap", "b": {"at": "log:loss/gap", "compare": "difference"}}
    plan = write_plan(tmp_path, seeds=[0], metrics=metrics)
    assert main(["ablate", str(plan), "--only", "without-"]) == 0
    rows = [row for row in rows_of(tmp_path / "out" / "table.csv") if row["pairs"] == "1"]
    assert [(row["metric"], row["comparison"]) for row in rows] == [
        ("a", "ratio"),
        ("b", "difference"),
    ]
    results = rows_of(tmp_path / "out" / "results.csv")
    values = {row["divergence"]: float(row["a"]) for row in results}
    base, ours = values["rkl"], values["js"]
    assert float(rows[0]["compared"]) == pytest.approx(ours / base, rel=1e-3)
    assert float(rows[1]["compared"]) == pytest.approx(ours - base, rel=1e-2)


def test_what_a_later_cell_lacks_is_told_before_the_first_one_trains(
    tmp_path: Path, in_process: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    axes = {"a": {"fine": [], "wrong": ["gan.wight=1"]}}
    plan = write_plan(tmp_path, axes=axes, baseline={}, seeds=[0])
    assert main(["ablate", str(plan), "--only", "fine"]) == 2
    assert in_process == []
    told = capsys.readouterr().err
    assert "cell wrong-seed0: command line: gan.wight: unknown field; did you mean" in told


def test_a_list_of_baselines_is_compared_with_one_by_one(
    tmp_path: Path, in_process: list[list[str]]
) -> None:
    both = [{"divergence": "rkl"}, {"GAN loss": "without"}]
    main(["ablate", str(write_plan(tmp_path, seeds=[0], baseline=both))])
    rows = rows_of(tmp_path / "out" / "table.csv")
    found = [row["baseline"] for row in rows if row["divergence"] == "js" and row["pairs"] == "1"]
    assert found == ["rkl / without", "rkl / with", "js / without"]
    told = (tmp_path / "out" / "table.md").read_text()
    for words in ("with divergence = rkl.", "with GAN loss = without.", " of rkl", "by mean"):
        assert words in told, words


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "ablations").glob("*.yaml")))
def test_the_projects_plans_load_with_every_recipe_they_make(path: Path) -> None:
    plan = load_plan(path)
    for cell in verb.cells_of(plan, path):
        assert cell.wanted().out == str(cell.folder)
