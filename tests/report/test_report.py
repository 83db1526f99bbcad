"""The report: everything in one page, missing parts said, nothing fetched, nothing injected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stack.report.panels import PANELS
from stack.report.report import write_report
from stack.report.sections import duration
from stack.util.errors import UserError

RECIPE = """\
name: digits_js
seed: 3
divergence: jensen_shannon
teacher: {path: runs/teacher}
iterations: 400
student_every: 2
guidance: 1.75
"""
EVALUATION = {
    "teacher": {"nfe": 50, "frechet_distance": 2.0, "recall": 0.81, "images_per_second": 61.25},
    "student": {"nfe": 1, "frechet_distance": 2.5, "recall": 0.79, "images_per_second": 2450.0},
    "samples": 5000,
    "seed": 0,
    "speedup": 40.0,
    "real_halves_frechet_distance": 0.4567,
    "judge": {"accuracy": {"digit": 0.9958}},
    "device": "Abacus <2>, 2 threads",
}


def metrics(steps: int = 40) -> list[dict[str, Any]]:
    """Rows as training logs them; the student's figures on every other one."""
    rows = []
    for i in range(1, steps + 1):
        row = {"step": 10 * i, "time": 1.5 * i, "skipped": 0, "images_per_second": 300.0 + i}
        row |= {"loss/fake": 1 / i, "loss/discriminator": 1.3, "grad/fake": 0.5, "lr/fake": 1e-4}
        row |= {"data_wait": 0.02, "discriminator/accuracy": 0.6, "latent/drift": 0.1}
        row |= {"similarity/fake": 0.2, "similarity/real": 0.1, "quick/frechet_distance": 2 / i}
        row |= {"quick/in_batch_similarity": 0.4, "quick/mode_entropy": 2.2}
        if i % 2 == 0:
            row |= {"loss/gap": 0.5, "r/p10": 0.2, "r/p50": 1.0, "r/p90": 4.0, "r/clipped": 0.01}
            row |= {"h/p10": 0.5, "h/p50": 1.0, "h/p90": 1.5, "h/variance": 0.1, "gap/mean": 0.2}
        rows.append(row)
    return rows


def write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "digits_js"
    (folder / "samples").mkdir(parents=True)
    write_log(folder / "metrics.jsonl", metrics())
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    Image.new("RGB", (60, 20), "red").save(folder / "samples" / "grid.png")
    told = {"prompts": ["a red one", "a <blue> two"], "seed": 7}
    (folder / "samples" / "grid.json").write_text(json.dumps(told))
    return folder


VOID = {"meta", "img", "br", "hr", "path", "use", "image"}


class Page(HTMLParser):
    """A page as text, headings, cells and links; unbalanced tags raise."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.titles: list[str] = []
        self.cells: list[tuple[str, bool]] = []
        self.sources: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag not in {"script", "link", "iframe"}
        self.sources += [v for k in ("src", "href", "xlink:href") if (v := values.get(k))]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append(("", values.get("class") == "best"))
        if tag == "h3":
            self.titles.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text.append(data)
        if self.open and self.open[-1] == "td":
            self.cells[-1] = (self.cells[-1][0] + data, self.cells[-1][1])
        if self.open and self.open[-1] == "h3":
            self.titles[-1] += data


def page(run: Path) -> Page:
    return Page(write_report(run).read_text())


def test_page_holds_the_run(run: Path) -> None:
    text = " ".join(page(run).text)
    for part in (
        "digits_js",
        "Jensen–Shannon",
        "runs/teacher",
        "seed 3",
        "1.25×",
        "40×",
        "0.457",
        "0.9958",
        "5,000 pictures",
        "Abacus <2>, 2 threads",
        "a red one, a <blue> two",
        "Seed 7",
        "1 min",
        "student_every: 2",
    ):
        assert part in text, part
    assert "yet" not in text


def test_table_marks_the_better_figure(run: Path) -> None:
    cells = page(run).cells
    assert cells == [
        ("50", False),
        ("1", False),
        ("2.000", True),
        ("2.500", False),
        ("0.810", True),
        ("0.790", False),
        ("61.2", False),
        ("2,450.0", True),
        ("0.457", False),
        ("0.9958", False),
    ]


def test_page_needs_nothing_beside_it(run: Path) -> None:
    html = write_report(run).read_text()
    assert "http" not in html
    assert "@import" not in html
    sources = Page(html).sources
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)


def test_every_logged_figure_has_its_chart(run: Path) -> None:
    assert page(run).titles == [panel.title for panel in PANELS if panel.title != "Losses"]


def test_figures_of_other_jobs_are_drawn_too(run: Path) -> None:
    rows = [{"step": i, "loss/kl": 1 / i, "grad/vae": 0.1, "lr/vae": 1e-3} for i in range(1, 9)]
    write_log(run / "metrics.jsonl", rows)
    assert page(run).titles == ["Losses", "Gradient norms", "Learning rates"]


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["evaluation.json"], "Not evaluated yet"),
        (["samples/grid.png"], "No sample grid yet"),
        (["evaluation.json", "samples/grid.png", "samples/grid.json"], "No sample grid yet"),
        (["samples/grid.json"], "Teacher above"),
        (["recipe.yaml"], "digits_js"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(run: Path, missing: list[str], said: str) -> None:
    for name in missing:
        (run / name).unlink()
    assert said in " ".join(page(run).text)


@pytest.mark.parametrize("part", [("teacher",), ("student",), ("speedup", "judge", "samples")])
def test_a_partial_evaluation_shows_what_it_has(run: Path, part: tuple[str, ...]) -> None:
    kept = {key: value for key, value in EVALUATION.items() if key not in part}
    (run / "evaluation.json").write_text(json.dumps(kept))
    assert ("0.457", False) in page(run).cells


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", None, "metrics.jsonl: no such file"),
        ("metrics.jsonl", "", "nothing was logged"),
        ("recipe.yaml", "a: [", "recipe.yaml: not YAML"),
        ("recipe.yaml", "just words", "recipe.yaml: not a recipe"),
        ("evaluation.json", "{", "evaluation.json: not JSON"),
    ],
)
def test_what_cannot_be_read_is_named(
    run: Path, name: str, content: str | None, message: str
) -> None:
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(UserError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


def test_restarts_and_skips_are_told(run: Path) -> None:
    rows = metrics()
    event = {"event": "resume", "step": 200, "time": 30}
    write_log(run / "metrics.jsonl", [*rows[:25], event, *rows[20:39], rows[39] | {"skipped": 3}])
    text = " ".join(page(run).text)
    assert "1, after iteration 200" in text
    assert "Dotted uprights: restarts." in text
    facts = page(run).text
    assert facts[facts.index("Iterations skipped") + 1] == "3"
    assert facts[facts.index("Iterations") + 1] == "400"
    assert facts[facts.index("Updates of the student") + 1] == "200"


def test_an_unfinished_run_says_how_far_it_is(run: Path) -> None:
    write_log(run / "metrics.jsonl", metrics(10))
    assert "100 of 400" in page(run).text


def test_the_newest_grid_is_shown_and_wide_ones_shrink(run: Path) -> None:
    newer = run / "samples" / "grid-wide.png"
    Image.new("RGB", (4000, 1000), "blue").save(newer)
    os.utime(newer, (2**31, 2**31))
    html = write_report(run).read_text()
    assert 'width="1600" height="400"' in html
    assert html.count("<img") == 1


def test_two_dimensional_runs_show_their_scatter_and_stages_their_steps(run: Path) -> None:
    (run / "evaluation.json").unlink()
    for name in ("modes.png", *(f"student-{step:07d}.png" for step in range(0, 700, 100))):
        Image.new("RGB", (10, 10)).save(run / "samples" / name)
    text = " ".join(page(run).text)
    assert "Not evaluated" not in text
    shown = [step for step in range(0, 700, 100) if f"after {step} iterations" in text]
    assert shown == [0, 200, 400, 600]


def test_out_goes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "page.html"
    assert write_report(run, out) == out
    assert out.exists()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (7380, "2 h 3 min"),
        (86399.9, "1 d"),
        (187200, "2 d 4 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_report_starts_without_torch() -> None:
    code = "import sys, stack.report.report, stack.report.figures; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
