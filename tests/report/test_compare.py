"""Several runs on one page: a column each, their own colours, what differs, nothing fetched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from stack.report.compare import write_comparison
from stack.report.folder import flat
from stack.util.errors import UserError
from tests.report.test_report import EVALUATION, RECIPE, Page, metrics, write_log


def make(folder: Path, name: str, *, distance: float, recipe: str = RECIPE) -> Path:
    run = folder / name
    (run / "samples").mkdir(parents=True)
    write_log(run / "metrics.jsonl", metrics())
    (run / "recipe.yaml").write_text(recipe.replace("digits_js", name))
    student = EVALUATION["student"] | {
        "frechet_distance": distance,
        "intervals": {"frechet_distance": {"low": distance - 0.5, "high": distance + 0.5}},
    }
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"student": student}))
    Image.new("RGB", (60, 20), "red").save(run / "samples" / "grid.png")
    (run / "samples" / "grid.json").write_text(json.dumps({"prompts": ["a red one"], "seed": 7}))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    changed = RECIPE.replace("jensen_shannon", "forward_kl").replace("seed: 3", "seed: 4")
    return [
        make(tmp_path, "first", distance=2.5),
        make(tmp_path, "second", distance=2.25, recipe=changed),
    ]


def test_every_run_has_its_column(runs: list[Path]) -> None:
    out = write_comparison(runs)
    assert out == runs[0].parent / "comparison.html"
    page = Page(out.read_text())
    text = " ".join(page.text)
    for part in ("2 runs compared", "first", "second", "[2.000, 3.000]", "[1.750, 2.750]", "400"):
        assert part in text, part
    assert text.count("a red one") == 2
    assert ("2.250", True) in page.cells
    assert ("2.500", False) in page.cells
    assert page.text.count("Restarts") == 1


def test_only_what_differs_is_in_the_table_of_recipes(runs: list[Path]) -> None:
    page = Page(write_comparison(runs).read_text())
    cells = [text for text, _ in page.cells]
    assert cells[-4:] == ["3", "4", "jensen_shannon", "forward_kl"]
    assert "student_every: 2" in " ".join(page.text)  # Folded, each whole.


def test_curves_are_overlaid(runs: list[Path]) -> None:
    page = Page(write_comparison(runs).read_text())
    for title in (
        "Losses of the critics: fake score",
        "Density ratio r: median",
        "Quick evaluations",
    ):
        assert page.titles.count(title) == 1


def chart(html: str, title: str) -> str:
    """The figure of that title."""
    found = html[html.index(f"<h3>{title}</h3>") :]
    return found[: found.index("</figure>")]


@pytest.mark.parametrize(
    ("words", "under", "not_under"),
    [
        ("2 ln 2", "Losses of the critics: discriminator", "Losses of the critics: fake score"),
        ("Near 0.5", "Discriminator: right answers", "Discriminator: ratios at a clip"),
        ("grow alike", "Likeness within a batch: student", "Likeness within a batch: data"),
    ],
)
def test_a_note_stands_under_what_it_is_of(
    runs: list[Path], words: str, under: str, not_under: str
) -> None:
    html = write_comparison(runs).read_text()
    assert words in chart(html, under)
    assert words not in chart(html, not_under)
    dashed = "stroke-dasharray"
    assert dashed not in chart(html, not_under)
    assert dashed in chart(html, under) or "dashed" not in chart(html, under)


def test_points_in_the_plane_are_not_to_be_evaluated(runs: list[Path]) -> None:
    for run in runs:
        (run / "evaluation.json").unlink()
    assert "None is evaluated yet" in write_comparison(runs).read_text()
    for run in runs:
        Image.new("RGB", (10, 10)).save(run / "samples" / "modes.png")
    assert "valuate" not in " ".join(Page(write_comparison(runs).read_text()).text)


def test_it_needs_nothing_beside_it(runs: list[Path]) -> None:
    html = write_comparison(runs).read_text()
    assert "http" not in html
    assert "@import" not in html
    assert all(source.startswith(("data:image/", "#")) for source in Page(html).sources)


def test_a_run_that_lacks_something_keeps_its_colour(runs: list[Path]) -> None:
    rows = [{k: v for k, v in row.items() if not k.startswith(("h/", "r/"))} for row in metrics()]
    write_log(runs[0] / "metrics.jsonl", rows)
    for name in ("evaluation.json", "samples/grid.png"):
        (runs[0] / name).unlink()
    html = write_comparison(runs).read_text()
    figure = chart(html, "Weight h of the score gap: median")
    assert "--series-2" in figure
    assert "--series-1" not in figure
    assert ("–", False) in Page(html).cells


def test_one_recipe_is_said_to_be_one(tmp_path: Path) -> None:
    runs = [make(tmp_path, name, distance=2.0) for name in ("a", "b")]
    assert "the same but for the names" in " ".join(Page(write_comparison(runs).read_text()).text)


def test_names_that_clash_become_folders(tmp_path: Path) -> None:
    runs = [make(tmp_path / place, "same", distance=2.0) for place in ("here", "there")]
    text = " ".join(Page(write_comparison(runs, tmp_path / "page.html").read_text()).text)
    assert str(runs[0]) in text


def test_a_run_given_twice_is_refused(runs: list[Path]) -> None:
    with pytest.raises(UserError, match="given twice"):
        write_comparison([runs[0], Path(os.path.relpath(runs[0]))])


def test_suites_besides_the_newest_are_shown(runs: list[Path]) -> None:
    folder = runs[0] / "evaluations"
    folder.mkdir()
    other = {"suite": "cifar10-seed1", "suite_of": "cifar10", "samples": 50000}
    other |= {"student": {"frechet_distance": 3.125}}
    (folder / "cifar10-seed1.json").write_text(json.dumps(other))
    text = " ".join(Page(write_comparison(runs).read_text()).text)
    assert "3.125" in text
    assert "Published, cifar10" in text


def test_every_kind_of_teacher_has_a_column(runs: list[Path]) -> None:
    """Of runs of one teacher the first one's; else it is told whose."""
    for number, run in enumerate(runs):
        told = json.loads((run / "evaluation.json").read_text())
        told["teacher"]["sampler"] = "Heun, 50 steps"
        told["student"]["sampler"] = "DDIM, 1 steps"
        sde = {"nfe": 40, "recall": 0.625 + number / 8, "sampler": "ancestral, 40 steps"}
        (run / "evaluation.json").write_text(json.dumps(told | {"teacher_sde": sde}))
    page = Page(write_comparison(runs).read_text())
    assert [text for text, _ in page.cells[:4]] == ["50", "40", "1", "1"]
    text = " ".join(page.text)
    assert "teacher_sde ancestral, 40 steps" in text
    assert "of first" not in text
    assert "first DDIM, 1 steps" in text
    assert "0.625" in text
    assert "0.750" not in text
    recipe = runs[1] / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("runs/teacher", "runs/other"))
    text = " ".join(Page(write_comparison(runs).read_text()).text)
    assert "teacher_sde ancestral, 40 steps, of first" in text
    assert "teacher_sde ancestral, 40 steps, of second" in text
    assert "0.750" in text


def test_a_variance_of_zero_is_said_and_leaves_the_others_scale_alone(runs: list[Path]) -> None:
    """Reverse KL's h is 1 everywhere: zeros would take the log scale from the other run."""
    rows = [row | {"h/variance": row["step"] / 100} for row in metrics()]
    write_log(runs[1] / "metrics.jsonl", rows)
    write_log(runs[0] / "metrics.jsonl", [row | {"h/variance": 0.0} for row in metrics()])
    figure = chart(write_comparison(runs).read_text(), "Variance of h")
    assert "Zero, h is constant: first." in figure
    assert "log scale" in figure
    assert "--series-1" not in figure
    write_log(runs[1] / "metrics.jsonl", [row | {"h/variance": 1e-16} for row in metrics()])
    figure = chart(write_comparison(runs).read_text(), "Variance of h")
    assert "Zero, h is constant: first, second." in figure
    assert "<svg" not in figure


def test_fields_by_dotted_name() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}
