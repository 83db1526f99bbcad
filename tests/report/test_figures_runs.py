"""Figures of runs: what is drawn is what was given, and all of it is in the CSV."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from stack.report import figures_runs
from stack.report.figures_grids import picture_grid
from stack.report.figures_runs import (
    Field,
    Overlay,
    Samples,
    overlaid,
    score_gap_map,
    sorted_samples,
)
from stack.report.history import History


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_samples_are_sorted_by_score_difference(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    gap, h = random.random(200), random.random(200) + 0.5
    found = Samples(gap, h, np.arange(200), np.log(h))
    paths = sorted_samples(tmp_path / "fig5", {"one": found, "two": found})
    rows = [row for row in rows_of(paths[2]) if row["run"] == "two"]
    differences = [float(row["score_difference"]) for row in rows]
    assert differences == sorted(differences)
    assert [int(row["rank"]) for row in rows] == list(range(1, 201))
    for row in rows:  # Each keeps its own h.
        assert abs(float(row["h"]) - h[int(row["t"])]) < 1e-5
    assert "200 samples" in paths[1].read_text()


def test_a_map_puts_rows_along_y(tmp_path: Path) -> None:
    x, y = np.linspace(-1, 1, 4), np.linspace(-2, 2, 4)
    plane = np.arange(1.0, 17).reshape(4, 4)
    field = Field(x, y, plane, plane, plane, plane, np.zeros((5, 2)), "forward KL", "noise 0.3")
    paths = score_gap_map(tmp_path / "fig2", field)
    rows = rows_of(paths[2])
    assert len(rows) == 16
    assert rows[1] | {"x": "-0.333333", "y": "-2", "h": "2"} == rows[1]
    assert rows[4] | {"x": "-1", "y": "-0.666667", "h": "5"} == rows[4]


def history(scale: float) -> History:
    rows = [{"step": 10 * i, "loss/gap": scale / i, "bad": -1.0} for i in range(1, 60)]
    rows[7]["loss/gap"] = 0.0  # A log scale leaves it out.
    rows[9]["quick/frechet_distance"] = scale
    return History(rows)


PANELS = [
    Overlay("loss/gap", "Loss", log=True),
    Overlay("quick/frechet_distance", "Distance", exact=True),
    Overlay("never", "Nothing of it"),
]


def test_curves_of_several_runs_are_in_one_figure(tmp_path: Path) -> None:
    runs = {"with": {"a": history(1.0)}, "without": {"b": history(5.0)}}
    paths = overlaid(tmp_path / "fig", PANELS, runs)
    text = paths[1].read_text()
    for words in ("Loss, log scale", "Distance", "with", "without", "iteration"):
        assert f">{words}<" in text, words
    assert "Nothing of it" not in text
    rows = rows_of(paths[2])
    assert len(rows) == 2 * 59 + 2
    assert {row["figure"] for row in rows} == {"loss/gap", "quick/frechet_distance"}
    assert {(row["line"], row["run"]) for row in rows} == {("with", "a"), ("without", "b")}
    assert "seeds" not in text


def test_seeds_are_one_line_in_a_band(tmp_path: Path) -> None:
    seeds = {f"seed{i}": history(scale) for i, scale in enumerate((1.0, 2.0, 4.0))}
    one = overlaid(tmp_path / "one", PANELS[:1], {"all": {"seed1": history(2.0)}})
    band = overlaid(tmp_path / "band", PANELS[:1], {"all": seeds})
    assert ">line and band: mean, lowest and highest of 3 seeds<" in band[1].read_text()
    assert len(rows_of(band[2])) == 3 * len(rows_of(one[2]))
    # A geometric mean of 1, 2 and 4 is 2: one line, without the raw ones.
    drawn = [path.read_text().count("opacity: 0.22") for path in (one[1], band[1])]
    assert drawn == [1, 0]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What would have been written."""
    figures: list[Figure] = []

    def keep(figure: Figure, *_: object) -> list[Path]:
        figures.append(figure)
        return []

    monkeypatch.setattr(figures_runs, "write", keep)
    return figures


def lines_of(figure: Figure) -> list[tuple[np.ndarray, np.ndarray]]:
    """Iterations and values of the first axes' lines; those of the legend have none."""
    data = [(np.asarray(x), np.asarray(y)) for x, y in map(Line2D.get_data, figure.axes[0].lines)]
    return [(x, y) for x, y in data if x.size]


def straight(first: int, last: int, height: float) -> History:
    rows = [{"step": step, "loss/gap": height} for step in range(first, last + 1, 10)]
    return History(rows)


@pytest.mark.parametrize("rows", [10, 60])  # Raw with dots, or smoothed.
def test_a_band_is_where_every_seed_is(rows: int, tmp_path: Path, drawn: list[Figure]) -> None:
    """The first is the longest; beyond the others its own values are drawn, and no mean."""
    last = 10 * rows
    seeds = {"a": straight(10, 2 * last, 3.0), "b": straight(10, last, 1.0)}
    overlaid(
        tmp_path / "fig",
        [Overlay("loss/gap", "Loss")],
        {"all": seeds | {"c": straight(30, last + 50, 2.0)}},
    )
    axes = drawn[0].axes[0]
    [band] = axes.collections
    box = band.get_paths()[0].get_extents()
    assert (box.x0, box.x1, box.y0, box.y1) == (30, last, 1, 3)
    (steps, mean), *alone = lines_of(drawn[0])
    assert set(mean) == {2.0}
    assert (steps.min(), steps.max()) == (30, last)
    found = {}
    for x, y in alone:
        seen = np.isfinite(y)
        found[y[seen][0]] = x[seen].tolist()
    assert found == {
        1.0: [10, 20],
        2.0: [*range(last + 10, last + 60, 10)],
        3.0: [10, 20, *range(last + 10, 2 * last + 10, 10)],
    }
    assert "thin: a seed" in drawn[0].get_supxlabel()


def test_seeds_of_one_length_have_no_thin_lines(tmp_path: Path, drawn: list[Figure]) -> None:
    seeds = {name: straight(10, 5000, height) for name, height in (("a", 1.0), ("b", 2.0))}
    overlaid(tmp_path / "fig", [Overlay("loss/gap", "Loss")], {"all": seeds})
    assert len(lines_of(drawn[0])) == 1
    assert "thin" not in drawn[0].get_supxlabel()


def test_what_is_zero_is_said_for_a_log_scale_has_no_place_for_it(tmp_path: Path) -> None:
    def log(variance: float) -> dict[str, History]:
        rows = [{"step": i, "h/variance": variance, "loss/gap": 1 / i} for i in range(1, 40)]
        return {"seed0": History(rows)}

    panels = [Overlay("loss/gap", "Loss", log=True), Overlay("h/variance", "Variance", log=True)]
    both = {"forward KL": log(0.5), "reverse KL": log(0.0)}
    text = overlaid(tmp_path / "both", panels, both)[1].read_text()
    assert ">zero: reverse KL<" in text
    assert ">Variance, log scale<" in text
    alone = overlaid(tmp_path / "alone", panels, {"reverse KL": log(1e-16)})[1].read_text()
    assert ">Variance: zero, not drawn<" in alone
    assert ">Variance, log scale<" not in alone


def test_where_nobody_comes_nothing_is_drawn(tmp_path: Path) -> None:
    """The highest h, in a corner without data or samples, has no part in colours or pixels."""
    axis = np.linspace(-2, 2, 41)
    x, y = np.meshgrid(axis, axis)
    density, gap, h = np.exp(-4 * (x**2 + y**2)), np.ones_like(x) + x**2, np.ones_like(x)
    h[30:, 30:] = 1e6
    field = Field(axis, axis, density, density, gap, h + density, np.zeros((5, 2)), "h", "noise")
    text = score_gap_map(tmp_path / "fig2", field)[1].read_text()
    assert "10⁶" not in text
    assert {">1<", ">2<"} <= set(re.findall(r">[\d.]+<", text))


def test_pictures_wrap_into_blocks_and_keep_their_colours(tmp_path: Path) -> None:
    red = np.zeros((12, 8, 8, 3), np.uint8)
    red[..., 0] = 255
    titles = [f"a picture of number {number} in many words" for number in range(12)]
    rows = {"teacher": red, "student": 255 - red}
    paths = picture_grid(tmp_path / "grid", rows, titles, note="below", details={"seed": 3})
    with Image.open(paths[0]) as image:
        counts = {c: n for n, c in image.convert("RGB").getcolors(2**24) or []}
    for colour in ((255, 0, 0), (0, 255, 255)):
        assert counts[colour] > 12 * 100 * 100
    cells = rows_of(paths[2])
    assert len(cells) == 24
    assert cells[7] | {"block": "1", "column": "1", "row": "teacher", "seed": "3"} == cells[7]
